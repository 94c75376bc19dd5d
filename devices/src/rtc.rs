//! A PL031 real-time clock by `vm-superio`, on the bus: where guests on arm64 look for the time. It has no alarm.

use crate::bus::{BusDevice, BusError};

/// Bytes that the clock's registers take.
pub const RTC_LEN: u64 = 0x1000;

/// A clock that shows the host's time.
pub struct Rtc(vm_superio::Rtc<vm_superio::rtc_pl031::NoEvents>);

impl Rtc {
    /// A clock.
    #[must_use]
    pub fn new() -> Self {
        Self(vm_superio::Rtc::new())
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Rtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rtc")
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        let (Ok(offset), Ok(word)) = (u16::try_from(offset), <&mut [u8; 4]>::try_from(data)) else {
            return Err(BusError::BadAccess);
        };
        self.0.read(offset, word);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), BusError> {
        let (Ok(offset), Ok(word)) = (u16::try_from(offset), <&[u8; 4]>::try_from(data)) else {
            return Err(BusError::BadAccess);
        };
        self.0.write(offset, word);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_clock_shows_the_hosts_time_and_its_kind() {
        let mut rtc = Rtc::new();
        let mut word = [0; 4];
        rtc.read(0, &mut word).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(u32::from_le_bytes(word).into()) <= 60);
        // The peripheral's number: 0x31 at 0xfe0, 0x10 at 0xfe4.
        rtc.read(0xfe0, &mut word).unwrap();
        assert_eq!(word, [0x31, 0, 0, 0]);
    }

    #[test]
    fn accesses_that_are_not_words_are_refused() {
        let mut rtc = Rtc::new();
        assert!(rtc.read(0, &mut [0; 8]).is_err());
        assert!(rtc.write(0, &[0]).is_err());
    }
}
