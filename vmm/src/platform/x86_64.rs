//! Ports of a PC: power, reset, serial, and those that are not there, answered so that a kernel moves on at once.
//!
//! All ones, as from an empty bus, would make some probes wait: a kernel polls the clock's update bit, the timer's
//! output bit and the keyboard's buffer bit until they change.

use std::sync::{Arc, Mutex};

use servin_devices::bus::{BusDevice, BusError};
use servin_devices::power::{KEYBOARD_PORT, KeyboardReset, POWER_PORT, POWER_PORT_LEN, PowerPort};
use servin_devices::serial::{COM1, COM1_GSI, SERIAL_LEN, Serial};

use super::Platform;
use crate::error::Error;

/// First port, number of ports, what each byte reads as.
const PORTS: [(u64, u64, u8); 8] = [
    // The timer's counters.
    (0x40, 4, 0),
    // The keyboard's data.
    (0x60, 1, 0),
    // Speaker and timer gate: the timer's output is high.
    (0x61, 1, 0x20),
    // The clock: no update is going on.
    (0x70, 2, 0),
    // Delay and diagnostics.
    (0x80, 1, 0xff),
    // The coprocessor's error latch.
    (0xf0, 2, 0xff),
    // The second serial port.
    (0x2f8, 8, 0xff),
    // PCI configuration: no bridge.
    (0xcf8, 8, 0xff),
];

/// Reads as one value, ignores writes.
struct Quiet(u8);

impl BusDevice for Quiet {
    fn read(&mut self, _: u64, data: &mut [u8]) -> Result<(), BusError> {
        data.fill(self.0);
        Ok(())
    }

    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), BusError> {
        Ok(())
    }
}

/// Attaches all of them.
pub(crate) fn attach(platform: Platform<'_>) -> Result<(), Error> {
    let Platform { vm, ports, serial, power, .. } = platform;
    ports.attach(POWER_PORT, POWER_PORT_LEN, Arc::new(Mutex::new(PowerPort::new(power()))))?;
    ports.attach(KEYBOARD_PORT, 1, Arc::new(Mutex::new(KeyboardReset::new(power()))))?;
    match serial {
        Some(output) => {
            let serial = Serial::new(vm.irq_line(COM1_GSI)?, output);
            ports.attach(COM1, SERIAL_LEN, Arc::new(Mutex::new(serial)))?;
        }
        // Nothing is there: reads as all ones, without a warning.
        None => ports.attach(COM1, SERIAL_LEN, Arc::new(Mutex::new(Quiet(0xff))))?,
    }
    for (base, len, value) in PORTS {
        ports.attach(base, len, Arc::new(Mutex::new(Quiet(value))))?;
    }
    Ok(())
}
