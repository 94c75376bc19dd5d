//! Entropy source (virtio 1.2, section 5.4): fills buffers from the host's random generator.

use std::io::Write as _;

use super::{ConfigSpace, Error, Io, VirtioDevice, id};
use crate::event::{Ready, Token};
use crate::os;
use crate::state::StateError;

/// Bytes of entropy for one request; a driver that asks for more gets this many.
const MAX_BYTES: usize = 64 * 1024;

/// The entropy device. It has no state of its own.
#[derive(Debug, Default)]
pub struct Rng {
    config: ConfigSpace,
}

impl Rng {
    /// An entropy device that draws from the host.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        id::RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn config(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn start(&mut self, _: u64, _: &mut dyn Io) -> Result<(), Error> {
        Ok(())
    }

    fn on_kick(&mut self, queue: u16, io: &mut dyn Io) -> Result<(), Error> {
        let mem = io.mem();
        while let Some(chain) = io.pop(queue)? {
            let mut writer = chain.writer(&mem);
            let mut random = vec![0; writer.len().min(MAX_BYTES)];
            os::random(&mut random)
                .map_err(|source| Error::Host { doing: "drawing random bytes", source })?;
            // Writing to guest memory that was checked does not fail.
            let _ = writer.write(&random);
            let written = writer.written();
            io.complete(queue, chain, written)?;
        }
        Ok(())
    }

    fn on_host(&mut self, _: Token, _: Ready, _: &mut dyn Io) -> Result<(), Error> {
        Ok(())
    }

    fn on_config_write(&mut self, _: u64, _: &[u8], _: &mut dyn Io) -> Result<(), Error> {
        Ok(())
    }

    fn stop(&mut self, _: &mut dyn Io) {}

    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), StateError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rig;

    #[test]
    fn buffers_are_filled_with_bytes_that_differ() {
        for mut rig in [Rig::new(Box::new(Rng::new())), Rig::threaded(Box::new(Rng::new()))] {
            rig.init(u64::MAX);
            let first = rig.ask(0, &[], &[40, 24]);
            let second = rig.ask(0, &[], &[64]);
            assert_eq!((first.len, second.len), (64, 64));
            assert_ne!(first.data, second.data);
            assert_eq!(rig.line().edges(), 2);
        }
    }

    #[test]
    fn a_request_without_room_gets_nothing() {
        let mut rig = Rig::started(Box::new(Rng::new()));
        assert_eq!(rig.ask(0, &[b"what"], &[]).len, 0);
    }
}
