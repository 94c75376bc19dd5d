//! Two 8259s as far as a kernel looks at them that takes its interrupts from the I/O APIC.
//!
//! Linux writes the interrupt masks and reads them back: where they do not hold, it concludes that there are no legacy
//! interrupts at all, and lines below 16 go astray. No interrupt ever comes from here.

use serde::{Deserialize, Serialize};

/// The masks of both chips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pics {
    masks: [u8; 2],
    /// Initialisation words that each chip still expects at its data port.
    words: [u8; 2],
}

impl Default for Pics {
    fn default() -> Self {
        Self { masks: [0xff; 2], words: [0; 2] }
    }
}

impl Pics {
    /// The chip behind a port, and whether it is the data port.
    fn chip(port: u16) -> Option<(usize, bool)> {
        match port {
            0x20 | 0x21 => Some((0, port & 1 != 0)),
            0xa0 | 0xa1 => Some((1, port & 1 != 0)),
            _ => None,
        }
    }

    /// Whether the port is one of theirs.
    #[must_use]
    pub fn has(port: u16) -> bool {
        Self::chip(port).is_some()
    }

    /// A read: the mask, or no request and no service.
    #[must_use]
    pub fn read(&self, port: u16) -> u8 {
        match Self::chip(port) {
            Some((chip, true)) => self.masks.get(chip).copied().unwrap_or(0xff),
            Some((_, false)) => 0,
            None => 0xff,
        }
    }

    /// A write: initialisation words (8259A, ICW1 to ICW4) are counted, so that they are not taken for masks.
    pub fn write(&mut self, port: u16, value: u8) {
        let Some((chip, data)) = Self::chip(port) else { return };
        let (Some(mask), Some(words)) = (self.masks.get_mut(chip), self.words.get_mut(chip)) else { return };
        match (data, *words) {
            // ICW1: ICW2 follows, ICW3 in a cascade, ICW4 if asked for.
            (false, _) if value & 0x10 != 0 => {
                *words = 1 + u8::from(value & 2 == 0) + (value & 1);
                *mask = 0;
            }
            (false, _) => {}
            (true, 0) => *mask = value,
            (true, left) => *words = left - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_back_and_initialisation_is_no_mask() {
        let mut pics = Pics::default();
        for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xfb), (0xa1, 0x7f)] {
            pics.write(port, value);
        }
        assert_eq!((pics.read(0x21), pics.read(0xa1)), (0xfb, 0x7f));
        assert_eq!((pics.read(0x20), pics.read(0xa0)), (0, 0));
        // End of interrupt changes nothing.
        pics.write(0x20, 0x20);
        assert_eq!(pics.read(0x21), 0xfb);
        assert!(!Pics::has(0x22) && Pics::has(0xa0));
    }
}
