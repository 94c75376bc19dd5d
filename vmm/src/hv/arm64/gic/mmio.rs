//! Memory-mapped registers: the distributor (IHI 0069, 12.9) and the redistributors (12.11).

use super::{FIRST_SPI, Gic, PRIORITY, SGIS, Source};

/// Bytes of the distributor.
pub const DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// Bytes of one redistributor: a frame for itself, one for its interrupts.
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// Where the second frame begins.
const PRIVATE_FRAME: u64 = 0x1_0000;

/// GICD_CTLR: affinity routing, one security state; fixed.
const FIXED_CONTROL: u32 = 1 << 4 | 1 << 6;
/// GICD_TYPER: 10 bits of interrupt numbers, no 1-of-N.
const FIXED_TYPE: u32 = 9 << 19 | 1 << 25;
/// GICD_IIDR, GICR_IIDR: nobody's.
const IMPLEMENTER: u32 = 0;
/// GICD_PIDR2, GICR_PIDR2: version 3 of the architecture.
const PERIPHERAL_ID_2: u32 = 0x30;
/// GICR_WAKER: ProcessorSleep, and ChildrenAsleep that follows it.
const SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;

/// Where an access goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// The distributor.
    Distributor,
    /// The redistributor of a vCPU.
    Redistributor(u8),
}

/// What a bit of a register that has one for each interrupt means.
#[derive(Clone, Copy)]
enum Bit {
    Group,
    Enable(bool),
    Pending(bool),
    Active(bool),
}

impl Bit {
    /// The kind of register at an offset, and which of its kind.
    fn at(offset: u64) -> Option<(Self, usize)> {
        let kind = match offset >> 7 {
            1 => Self::Group,
            2 => Self::Enable(true),
            3 => Self::Enable(false),
            4 => Self::Pending(true),
            5 => Self::Pending(false),
            6 => Self::Active(true),
            7 => Self::Active(false),
            _ => return None,
        };
        Some((kind, (offset & 0x7f) as usize / 4))
    }

    fn read(self, source: &Source) -> bool {
        match self {
            Self::Group => source.group1,
            Self::Enable(_) => source.enabled,
            Self::Pending(_) => source.pending(),
            Self::Active(_) => source.active,
        }
    }

    fn write(self, source: &mut Source, set: bool) {
        match self {
            Self::Group => source.group1 = set,
            Self::Enable(to) if set => source.enabled = to,
            Self::Pending(to) if set => source.latched = to,
            Self::Active(to) if set => source.active = to,
            _ => {}
        }
    }
}

/// The offset within the registers that the distributor and the second frame share.
fn banked(frame: Frame, offset: u64) -> Option<u64> {
    match frame {
        Frame::Distributor => Some(offset),
        Frame::Redistributor(_) => offset.checked_sub(PRIVATE_FRAME),
    }
}

impl Gic {
    /// A read of `data` at `offset` of a frame. What is not there reads as zero.
    pub fn read(&self, frame: Frame, offset: u64, data: &mut [u8]) {
        let word = |at: u64| self.read_word(frame, at);
        let value = if data.len() > 4 {
            u64::from(word(offset & !3)) | u64::from(word((offset & !3).wrapping_add(4))) << 32
        } else {
            u64::from(word(offset & !3)) >> (8 * (offset & 3))
        };
        for (byte, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = from;
        }
    }

    /// A write; of 1, 4 or 8 bytes, aligned. Single bytes go to priorities only, and others are dropped.
    pub fn write(&mut self, frame: Frame, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(data.len().max(1) as u64) {
            return;
        }
        match *data {
            [byte] => self.write_priority(frame, offset, byte),
            [a, b, c, d] => self.write_word(frame, offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                self.write_word(frame, offset, u32::from_le_bytes([a, b, c, d]));
                self.write_word(frame, offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    /// Interrupts `first` .. `first + count` of a frame, if it has all of them. With affinity routing the distributor has
    /// none below 32.
    fn sources(&self, frame: Frame, first: usize, count: usize) -> Option<&[Source]> {
        match frame {
            Frame::Distributor => self.shared.get(first.checked_sub(FIRST_SPI as usize)?..)?.get(..count),
            Frame::Redistributor(cpu) => self.cpus.get(usize::from(cpu))?.private.get(first..)?.get(..count),
        }
    }

    fn sources_mut(&mut self, frame: Frame, first: usize, count: usize) -> Option<&mut [Source]> {
        match frame {
            Frame::Distributor => {
                self.shared.get_mut(first.checked_sub(FIRST_SPI as usize)?..)?.get_mut(..count)
            }
            Frame::Redistributor(cpu) => {
                self.cpus.get_mut(usize::from(cpu))?.private.get_mut(first..)?.get_mut(..count)
            }
        }
    }

    fn read_word(&self, frame: Frame, offset: u64) -> u32 {
        self.read_own(frame, offset).or_else(|| self.read_bank(frame, offset)).unwrap_or(0)
    }

    /// Registers that are not one for each interrupt.
    fn read_own(&self, frame: Frame, offset: u64) -> Option<u32> {
        match (frame, offset) {
            (Frame::Distributor, 0) => {
                let [group0, group1] = self.groups;
                Some(FIXED_CONTROL | u32::from(group0) | u32::from(group1) << 1)
            }
            (Frame::Distributor, 4) => Some(FIXED_TYPE | (self.shared.len() as u32 / 32)),
            (Frame::Distributor, 8) | (Frame::Redistributor(_), 4) => Some(IMPLEMENTER),
            (Frame::Distributor, 0x6100..0x8000) => {
                let route = self.routes.get((offset - 0x6100) as usize / 8)?;
                Some((route >> (8 * (offset & 4))) as u32)
            }
            (_, 0xffe8) => Some(PERIPHERAL_ID_2),
            (Frame::Redistributor(cpu), 8) => {
                let last = usize::from(cpu) + 1 == self.cpus.len();
                Some(u32::from(cpu) << 8 | u32::from(last) << 4)
            }
            // The affinity: the number again.
            (Frame::Redistributor(cpu), 0xc) => Some(cpu.into()),
            (Frame::Redistributor(cpu), 0x14) => {
                let asleep = self.cpus.get(usize::from(cpu))?.asleep;
                Some(if asleep { SLEEP | CHILDREN_ASLEEP } else { 0 })
            }
            _ => None,
        }
    }

    fn read_bank(&self, frame: Frame, offset: u64) -> Option<u32> {
        let offset = banked(frame, offset)?;
        if let Some((bit, index)) = Bit::at(offset) {
            let sources = self.sources(frame, index * 32, 32)?;
            return Some(
                sources.iter().rev().fold(0, |word, source| word << 1 | u32::from(bit.read(source))),
            );
        }
        match offset {
            0x400..0x800 => {
                let sources = self.sources(frame, (offset - 0x400) as usize, 4)?;
                Some(sources.iter().rev().fold(0, |word, source| word << 8 | u32::from(source.priority)))
            }
            0xc00..0xd00 => {
                let sources = self.sources(frame, (offset - 0xc00) as usize * 4, 16)?;
                Some(sources.iter().rev().fold(0, |word, source| word << 2 | u32::from(source.edge) << 1))
            }
            _ => None,
        }
    }

    fn write_word(&mut self, frame: Frame, offset: u64, value: u32) {
        match (frame, offset) {
            (Frame::Distributor, 0) => self.groups = [value & 1 != 0, value & 2 != 0],
            (Frame::Distributor, 0x6100..0x8000) => {
                if let Some(route) = self.routes.get_mut((offset - 0x6100) as usize / 8) {
                    let shift = 8 * (offset & 4);
                    let changed = *route & !(0xffff_ffff << shift) | u64::from(value) << shift;
                    // Aff3, Aff2, Aff1, Aff0; the mode bit (1-of-N) stays clear.
                    *route = changed & 0xff_00ff_ffff;
                }
            }
            (Frame::Redistributor(cpu), 0x14) => {
                if let Some(cpu) = self.cpus.get_mut(usize::from(cpu)) {
                    cpu.asleep = value & SLEEP != 0;
                }
            }
            _ => self.write_bank(frame, offset, value),
        }
    }

    fn write_bank(&mut self, frame: Frame, offset: u64, value: u32) {
        let Some(offset) = banked(frame, offset) else { return };
        if let Some((bit, index)) = Bit::at(offset) {
            let sources = self.sources_mut(frame, index * 32, 32).unwrap_or_default();
            for (at, source) in sources.iter_mut().enumerate() {
                bit.write(source, value >> at & 1 != 0);
            }
            return;
        }
        match offset {
            0x400..0x800 => {
                let sources = self.sources_mut(frame, (offset - 0x400) as usize, 4).unwrap_or_default();
                for (source, priority) in sources.iter_mut().zip(value.to_le_bytes()) {
                    source.priority = priority & PRIORITY;
                }
            }
            0xc00..0xd00 => {
                let first = (offset - 0xc00) as usize * 4;
                // What software sends is an edge, for good.
                if first < SGIS && frame != Frame::Distributor {
                    return;
                }
                let sources = self.sources_mut(frame, first, 16).unwrap_or_default();
                for (at, source) in sources.iter_mut().enumerate() {
                    source.edge = value >> (2 * at + 1) & 1 != 0;
                }
            }
            _ => {}
        }
    }

    fn write_priority(&mut self, frame: Frame, offset: u64, priority: u8) {
        let Some(offset @ 0x400..0x800) = banked(frame, offset) else { return };
        if let Some([source]) = self.sources_mut(frame, (offset - 0x400) as usize, 1) {
            source.priority = priority & PRIORITY;
        }
    }
}
