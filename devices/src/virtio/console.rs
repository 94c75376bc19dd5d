//! Console with one port (virtio 1.2, section 5.3): the kernel's log and, for embedders, a terminal.
//!
//! Output goes to a nonblocking descriptor or to a writer. While a descriptor takes no more, at most one chain's
//! bytes are kept and the guest waits. Input comes from a descriptor, read only while the guest has buffers for it.

mod stream;

use std::io::{self, Read as _, Write};

use serde::{Deserialize, Serialize};

use super::{Chain, ConfigSpace, Error, Io, VirtioDevice, id};
use crate::event::{Ready, Token};
use crate::state::{self, State, StateError};

pub use stream::Stream;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [64, 64];

const INPUT: Token = 0;
const OUTPUT: Token = 1;

/// The longest chain a driver may send at once.
const MAX_CHAIN: usize = 1 << 20;

/// Where the guest's output goes.
pub enum Output {
    /// A descriptor, best a nonblocking one: while it takes no more, the guest waits.
    Fd(Stream),
    /// A writer that takes everything without blocking, such as a log in memory.
    Writer(Box<dyn Write + Send>),
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fd(fd) => f.debug_tuple("Fd").field(fd).finish(),
            Self::Writer(_) => f.write_str("Writer"),
        }
    }
}

/// The console device.
#[derive(Debug)]
pub struct Console {
    config: ConfigSpace,
    output: Output,
    input: Option<Stream>,
    /// Output that the descriptor has not taken yet.
    pending: Vec<u8>,
    watching_input: bool,
    watching_output: bool,
}

impl Console {
    /// A console that writes to `output` and reads from `input`, a nonblocking descriptor, if there is one.
    #[must_use]
    pub fn new(output: Output, input: Option<Stream>) -> Self {
        Self {
            config: ConfigSpace::new(vec![0; 12]),
            output,
            input,
            pending: Vec::new(),
            watching_input: false,
            watching_output: false,
        }
    }

    /// Writes what is pending. False when the output takes no more for now.
    fn flush(&mut self, io: &mut dyn Io) -> Result<bool, Error> {
        let fd = match &mut self.output {
            Output::Writer(writer) => {
                if let Err(error) = writer.write_all(&self.pending) {
                    log::debug!("console output: {error}");
                }
                self.pending.clear();
                return Ok(true);
            }
            Output::Fd(fd) => fd,
        };
        while !self.pending.is_empty() {
            match stream::write(fd, &self.pending) {
                Ok(done) => drop(self.pending.drain(..done.min(self.pending.len()))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // Nobody reads any more: the guest goes on without a console.
                    log::debug!("console output: {error}");
                    self.pending.clear();
                }
            }
        }
        let watch = !self.pending.is_empty();
        if watch != self.watching_output {
            let source = stream::source(fd);
            let changed = if watch { io.watch(source, OUTPUT, Ready::WRITE) } else { io.unwatch(source) };
            changed.map_err(|source| Error::Host { doing: "watching the console's output", source })?;
            self.watching_output = watch;
        }
        Ok(!watch)
    }

    fn transmit(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let mem = io.mem();
        while self.flush(io)? {
            let Some(chain) = io.pop(TRANSMIT)? else { break };
            let mut reader = chain.reader(&mem);
            if reader.len() > MAX_CHAIN {
                return Err(Error::Guest(format!("console output of {} bytes at once", reader.len())));
            }
            // Reading from guest memory that was checked does not fail.
            let _ = reader.read_to_end(&mut self.pending);
            io.complete(TRANSMIT, chain, 0)?;
        }
        Ok(())
    }

    /// Reads input into the guest's buffers; stops watching when there is none of either.
    fn receive(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let Some(input) = &self.input else { return Ok(()) };
        let mem = io.mem();
        let mut watch = false;
        let mut ended = false;
        while let Some(chain) = io.pop(RECEIVE)? {
            let mut writer = chain.writer(&mem);
            let room = writer.len();
            match stream::read(input, &mut writer, room) {
                Ok(0) if room > 0 => {
                    ended = true;
                    io.unpop(RECEIVE, chain);
                    break;
                }
                Ok(done) => complete(io, chain, done)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    io.unpop(RECEIVE, chain);
                    watch = true;
                    break;
                }
                Err(error) => {
                    log::debug!("console input: {error}");
                    ended = true;
                    io.unpop(RECEIVE, chain);
                    break;
                }
            }
        }
        if watch != self.watching_input {
            let source = stream::source(input);
            let changed = if watch { io.watch(source, INPUT, Ready::READ) } else { io.unwatch(source) };
            changed.map_err(|source| Error::Host { doing: "watching the console's input", source })?;
            self.watching_input = watch;
        }
        if ended {
            self.input = None;
        }
        Ok(())
    }
}

fn complete(io: &mut dyn Io, chain: Chain, done: usize) -> Result<(), Error> {
    Ok(io.complete(RECEIVE, chain, u32::try_from(done).unwrap_or(u32::MAX))?)
}

impl VirtioDevice for Console {
    fn id(&self) -> u32 {
        id::CONSOLE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn start(&mut self, _: u64, io: &mut dyn Io) -> Result<(), Error> {
        self.flush(io).map(|_| ())
    }

    fn on_kick(&mut self, queue: u16, io: &mut dyn Io) -> Result<(), Error> {
        if queue == TRANSMIT { self.transmit(io) } else { self.receive(io) }
    }

    fn on_host(&mut self, token: Token, _: Ready, io: &mut dyn Io) -> Result<(), Error> {
        if token == OUTPUT { self.transmit(io) } else { self.receive(io) }
    }

    fn on_config_write(&mut self, _: u64, _: &[u8], _: &mut dyn Io) -> Result<(), Error> {
        Ok(())
    }

    fn stop(&mut self, io: &mut dyn Io) {
        if let (true, Some(input)) = (std::mem::take(&mut self.watching_input), &self.input) {
            let _ = io.unwatch(stream::source(input));
        }
        if let (true, Output::Fd(fd)) = (std::mem::take(&mut self.watching_output), &self.output) {
            let _ = io.unwatch(stream::source(fd));
        }
        self.pending.clear();
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        state::encode(&ConsoleState { pending: self.pending.clone() })
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        self.pending = state::decode::<ConsoleState>(bytes)?.pending;
        Ok(())
    }
}

/// Output on its way.
#[derive(Debug, Serialize, Deserialize)]
struct ConsoleState {
    pending: Vec<u8>,
}

impl State for ConsoleState {
    const NAME: &'static str = "virtio-console";
    const VERSION: u16 = 1;
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::testing::Rig;

    fn pair() -> (UnixStream, OwnedFd) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (ours, theirs.into())
    }

    #[test]
    fn output_reaches_the_descriptor_in_order() {
        let (mut host, fd) = pair();
        let mut rig = Rig::threaded(Box::new(Console::new(Output::Fd(fd), None)));
        rig.init(u64::MAX);
        rig.add(TRANSMIT, &[b"hello ", b"world"], &[]);
        rig.wait_used(TRANSMIT);
        let mut got = [0; 11];
        host.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello world");
    }

    #[test]
    fn a_full_descriptor_makes_the_guest_wait_and_loses_nothing() {
        let (mut host, fd) = pair();
        let mut rig = Rig::started(Box::new(Console::new(Output::Fd(fd), None)));
        let line = [b'x'; 60_000];
        let mut sent = 0;
        // The socket takes a few chains, one more is pending, then the guest waits.
        while rig.used(TRANSMIT).is_some() || sent == 0 {
            rig.add(TRANSMIT, &[&line], &[]);
            sent += 1;
            assert!(sent < 60, "the socket never fills up");
        }
        let mut got = vec![0; sent * line.len()];
        let reader = std::thread::spawn(move || {
            host.read_exact(&mut got).unwrap();
            got
        });
        rig.wait_used(TRANSMIT);
        while !reader.is_finished() {
            rig.transport().turn(Duration::from_millis(10)).unwrap();
        }
        assert!(reader.join().unwrap().iter().all(|&byte| byte == b'x'));
    }

    #[test]
    fn input_waits_for_buffers_and_its_end_is_not_an_error() {
        let (mut host, fd) = pair();
        let mut rig = Rig::started(Box::new(Console::new(Output::Writer(Box::new(io::sink())), Some(fd))));
        host.write_all(b"typed").unwrap();
        let used = rig.ask(RECEIVE, &[], &[16]);
        assert_eq!((used.len, &used.data[..5]), (5, &b"typed"[..]));
        drop(host);
        rig.add(RECEIVE, &[], &[16]);
        rig.run();
        assert!(rig.used(RECEIVE).is_none() && !rig.needs_reset());
    }

    #[test]
    fn pending_output_survives_a_snapshot() {
        let (_host, fd) = pair();
        let mut console = Console::new(Output::Fd(fd), None);
        console.pending = b"left".to_vec();
        let saved = console.save().unwrap();
        let (mut host, fd) = pair();
        let mut restored = Console::new(Output::Fd(fd), None);
        restored.restore(&saved).unwrap();
        let _rig = Rig::started(Box::new(restored));
        let mut got = [0; 4];
        host.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"left");
    }
}
