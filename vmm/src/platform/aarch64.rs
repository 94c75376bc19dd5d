//! The serial port and the clock of an arm64 machine. It is powered off by PSCI.

use std::sync::{Arc, Mutex};

use servin_devices::rtc::{RTC_LEN, Rtc};
use servin_devices::serial::{SERIAL_LEN, Serial};

use super::Platform;
use crate::error::Error;
use crate::layout;

/// Attaches both.
pub(crate) fn attach(platform: Platform<'_>) -> Result<(), Error> {
    let Platform { vm, mmio, serial, .. } = platform;
    if let Some(output) = serial {
        let serial = Serial::new(vm.irq_line(layout::SERIAL_GSI)?, output);
        mmio.attach(layout::SERIAL, SERIAL_LEN, Arc::new(Mutex::new(serial)))?;
    }
    mmio.attach(layout::RTC, RTC_LEN, Arc::new(Mutex::new(Rtc::new())))?;
    Ok(())
}
