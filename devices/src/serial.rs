//! A 16550 serial port by `vm-superio`, on the bus: output goes to a writer, there is no input.
//!
//! For early kernel messages and for guests that are not ours: every byte costs two exits, so nothing else uses it.

use std::io;
use std::sync::Arc;

use crate::bus::{BusDevice, BusError};
use crate::irq::IrqLine;

/// The first I/O port of the first serial port on a PC.
pub const COM1: u64 = 0x3f8;
/// Ports of one serial port.
pub const SERIAL_LEN: u64 = 8;
/// The interrupt of the first serial port on a PC.
pub const COM1_GSI: u32 = 4;

struct Line(Arc<dyn IrqLine>);

impl vm_superio::Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> Result<(), io::Error> {
        self.0.trigger()
    }
}

/// A serial port that writes what the guest sends to a writer, which must not block.
pub struct Serial(vm_superio::Serial<Line, vm_superio::serial::NoEvents, Box<dyn io::Write + Send>>);

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Serial")
    }
}

impl Serial {
    /// A serial port that raises `line` and writes to `output`.
    #[must_use]
    pub fn new(line: Arc<dyn IrqLine>, output: Box<dyn io::Write + Send>) -> Self {
        Self(vm_superio::Serial::new(Line(line), output))
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        let (Ok(offset), [byte]) = (u8::try_from(offset), data) else { return Err(BusError::BadAccess) };
        *byte = self.0.read(offset);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), BusError> {
        let (Ok(offset), &[byte]) = (u8::try_from(offset), data) else { return Err(BusError::BadAccess) };
        if let Err(error) = self.0.write(offset, byte) {
            // Losing console output does not stop a guest.
            log::debug!("serial port: {error:?}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::testing::CountingLine;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_reach_the_writer_and_the_line_status_says_empty() {
        let output = Shared::default();
        let line = Arc::new(CountingLine::default());
        let mut serial = Serial::new(Arc::<CountingLine>::clone(&line), Box::new(output.clone()));
        serial.write(1, &[2]).unwrap();
        for byte in b"ok" {
            serial.write(0, &[*byte]).unwrap();
        }
        let mut status = [0];
        serial.read(5, &mut status).unwrap();
        assert_eq!(status[0] & 0x60, 0x60);
        assert_eq!(*output.0.lock().unwrap(), b"ok");
        assert!(line.edges() >= 1);
    }

    #[test]
    fn wide_accesses_are_refused() {
        let mut serial = Serial::new(Arc::new(CountingLine::default()), Box::new(io::sink()));
        assert!(serial.read(0, &mut [0; 2]).is_err());
        assert!(serial.write(0, &[0; 4]).is_err());
    }
}
