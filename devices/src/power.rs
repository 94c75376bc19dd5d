//! How a guest ends its machine: our power port, and the reset line of the keyboard controller.
//!
//! The guest kernel and agent write to the power port; a Linux that knows nothing of it (a stock kernel after a
//! panic) pulses the reset line of an 8042 keyboard controller. Neither device touches the VM: both tell a sink.

use crate::bus::{BusDevice, BusError};

/// The first I/O port of [`PowerPort`] on x86.
pub const POWER_PORT: u64 = 0x600;
/// Ports that [`PowerPort`] answers.
pub const POWER_PORT_LEN: u64 = 4;
/// The command port of the keyboard controller.
pub const KEYBOARD_PORT: u64 = 0x64;

/// What the guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Power off.
    Off,
    /// Reset.
    Reset,
}

/// Told of each request, on the thread of the vCPU that made it. Must not block.
pub type PowerSink = Box<dyn Fn(PowerRequest) + Send>;

/// The power port: writing 1 powers off, 2 resets; other values are ignored. Reads give 0.
pub struct PowerPort(PowerSink);

impl PowerPort {
    /// A power port that tells `sink`.
    #[must_use]
    pub fn new(sink: PowerSink) -> Self {
        Self(sink)
    }
}

impl std::fmt::Debug for PowerPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PowerPort")
    }
}

impl BusDevice for PowerPort {
    fn read(&mut self, _: u64, data: &mut [u8]) -> Result<(), BusError> {
        data.fill(0);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), BusError> {
        match (offset, data) {
            (0, [1, rest @ ..]) if rest.iter().all(|&byte| byte == 0) => (self.0)(PowerRequest::Off),
            (0, [2, rest @ ..]) if rest.iter().all(|&byte| byte == 0) => (self.0)(PowerRequest::Reset),
            _ => {}
        }
        Ok(())
    }
}

/// Port 0x64 of a keyboard controller that is not there, but for its reset line. Reads give 0: "ready, nothing to
/// read"; a guest that read all ones would poll it for a long time.
pub struct KeyboardReset(PowerSink);

/// The command that pulses the reset line.
const PULSE_RESET: u8 = 0xfe;

impl KeyboardReset {
    /// A reset line that tells `sink`.
    #[must_use]
    pub fn new(sink: PowerSink) -> Self {
        Self(sink)
    }
}

impl std::fmt::Debug for KeyboardReset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyboardReset")
    }
}

impl BusDevice for KeyboardReset {
    fn read(&mut self, _: u64, data: &mut [u8]) -> Result<(), BusError> {
        data.fill(0);
        Ok(())
    }

    fn write(&mut self, _: u64, data: &[u8]) -> Result<(), BusError> {
        if data == [PULSE_RESET] {
            (self.0)(PowerRequest::Reset);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_power_port_takes_one_and_two() {
        let (tell, told) = mpsc::channel();
        let mut port = PowerPort::new(Box::new(move |request| tell.send(request).unwrap()));
        for (offset, data) in [(0, &[1][..]), (1, &[1]), (0, &[3]), (0, &[2, 0]), (0, &[1, 1])] {
            port.write(offset, data).unwrap();
        }
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [PowerRequest::Off, PowerRequest::Reset]);
    }

    #[test]
    fn the_keyboard_controller_reads_zero_and_resets_on_a_pulse() {
        let (tell, told) = mpsc::channel();
        let mut port = KeyboardReset::new(Box::new(move |request| tell.send(request).unwrap()));
        let mut data = [0xaa];
        port.read(0, &mut data).unwrap();
        assert_eq!(data, [0]);
        port.write(0, &[0xd1]).unwrap();
        port.write(0, &[0xfe]).unwrap();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [PowerRequest::Reset]);
    }
}
