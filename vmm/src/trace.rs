//! The guest's accesses that reached the monitor, with their times, where somebody wants to know.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::hv::GuestIo;

/// Accesses kept at most: a start has some hundreds.
const MOST: usize = 1 << 16;

/// One access: an exit of a vCPU that a device answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// When it reached the monitor.
    pub at: Instant,
    /// How long the answer took.
    pub took: Duration,
    /// Whose.
    pub cpu: u32,
    /// A port, and not memory.
    pub is_port: bool,
    /// The guest wrote.
    pub is_write: bool,
    /// Its physical address, or the port.
    pub address: u64,
    /// Bytes.
    pub length: usize,
}

/// The accesses of one VM ([`crate::VmBuilder::trace`]). Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Accesses(Arc<Mutex<(Vec<Access>, u64)>>);

impl Accesses {
    /// Takes what was seen since the last call, and the number of accesses for which there was no room.
    #[must_use]
    pub fn take(&self) -> (Vec<Access>, u64) {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, access: Access) {
        let (seen, lost) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < MOST {
            seen.push(access);
        } else {
            *lost += 1;
        }
    }
}

/// Passes accesses on, and notes them.
pub(crate) struct Traced<I> {
    pub(crate) io: I,
    pub(crate) cpu: u32,
    pub(crate) accesses: Accesses,
}

impl<I: GuestIo> Traced<I> {
    fn note(
        &mut self,
        is_port: bool,
        is_write: bool,
        address: u64,
        length: usize,
        pass: impl FnOnce(&mut I),
    ) {
        let at = Instant::now();
        pass(&mut self.io);
        self.accesses.add(Access {
            at,
            took: at.elapsed(),
            cpu: self.cpu,
            is_port,
            is_write,
            address,
            length,
        });
    }
}

impl<I: GuestIo> GuestIo for Traced<I> {
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        self.note(false, false, addr, data.len(), |io| io.mmio_read(addr, data));
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        self.note(false, true, addr, data.len(), |io| io.mmio_write(addr, data));
    }

    fn pio_in(&mut self, port: u16, data: &mut [u8]) {
        self.note(true, false, port.into(), data.len(), |io| io.pio_in(port, data));
    }

    fn pio_out(&mut self, port: u16, data: &[u8]) {
        self.note(true, true, port.into(), data.len(), |io| io.pio_out(port, data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the low byte of the address.
    struct Echo;

    impl GuestIo for Echo {
        fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
            data.fill(addr as u8);
        }
        fn mmio_write(&mut self, _: u64, _: &[u8]) {}
        fn pio_in(&mut self, port: u16, data: &mut [u8]) {
            data.fill(port as u8);
        }
        fn pio_out(&mut self, _: u16, _: &[u8]) {}
    }

    #[test]
    fn accesses_are_answered_and_noted_in_order_and_not_without_end() {
        let accesses = Accesses::default();
        let mut io = Traced { io: Echo, cpu: 3, accesses: accesses.clone() };
        let mut data = [0; 4];
        io.mmio_read(0xd000_0012, &mut data);
        assert_eq!(data, [0x12; 4]);
        io.pio_out(0x600, &[1]);
        let (seen, lost) = accesses.take();
        let short: Vec<_> =
            seen.iter().map(|a| (a.cpu, a.is_port, a.is_write, a.address, a.length)).collect();
        assert_eq!(short, [(3, false, false, 0xd000_0012, 4), (3, true, true, 0x600, 1)]);
        assert_eq!(lost, 0);
        for _ in 0..MOST + 5 {
            io.pio_in(0x64, &mut data);
        }
        let (seen, lost) = accesses.take();
        assert_eq!((seen.len(), lost), (MOST, 5));
    }
}
