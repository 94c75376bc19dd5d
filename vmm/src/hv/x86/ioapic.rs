//! An I/O APIC (82093AA, with the version of ICH9) for hypervisors that bring the local APICs only, as WHP does.
//!
//! Pure logic: it is told of edges, register accesses and ends of interrupts, and answers with the [`Message`]s that the
//! backend hands to the local APICs. Lines are edges only (a device pulses its line), so a pin that the guest programmed as
//! level-triggered takes an edge as one level that fell again: one interrupt, and no other before its end.
//!
//! An edge on a masked pin is kept and delivered when the pin is opened. The chip of 1996 forgets it; a virtio device
//! would then wait for an answer for ever.

use serde::{Deserialize, Serialize};
use servin_devices::state::{State, StateError};

/// Pins.
pub const PINS: usize = 24;
/// Where it is, by convention of PCs.
pub const BASE: u64 = 0xfec0_0000;
/// Bytes of its registers.
pub const SIZE: u64 = 0x20;

/// Index register.
const IOREGSEL: u64 = 0x00;
/// Data of the indexed register.
const IOWIN: u64 = 0x10;

/// Version 0x20, and the number of the last pin.
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Redirection entry: delivery status (never seen set: delivery is at once).
const STATUS: u64 = 1 << 12;
/// Redirection entry: active low.
#[cfg(test)]
const ACTIVE_LOW: u64 = 1 << 13;
/// Redirection entry: an interrupt of a level pin is not ended yet.
const REMOTE_IRR: u64 = 1 << 14;
/// Redirection entry: level-triggered.
const LEVEL: u64 = 1 << 15;
/// Redirection entry: masked.
const MASKED: u64 = 1 << 16;
/// Redirection entry: what the guest may write.
const WRITABLE: u64 = 0xff00_0000_0001_ffff & !STATUS & !REMOTE_IRR;

/// How a message is delivered (82093AA, 3.2.4). Reserved ones are delivered to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// To all that the destination names.
    Fixed,
    /// To the one of them with the lowest priority.
    LowestPriority,
    /// Non-maskable.
    Nmi,
    /// INIT.
    Init,
}

/// An interrupt for the local APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// How it is delivered.
    pub delivery: Delivery,
    /// The vector.
    pub vector: u8,
    /// The destination names logical ids, not APIC ids.
    pub logical: bool,
    /// Who gets it.
    pub destination: u8,
    /// Level-triggered: its end is to be told by [`IoApic::end`].
    pub level: bool,
}

/// The chip.
#[derive(Debug, Clone)]
pub struct IoApic {
    select: u8,
    id: u8,
    pins: [u64; PINS],
    /// Edges that wait for their pin to be opened, or its last interrupt to end.
    pending: u32,
}

/// Its saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    select: u8,
    id: u8,
    pins: [u64; PINS],
    pending: u32,
}

impl State for IoApicState {
    const NAME: &'static str = "the I/O APIC";
    const VERSION: u16 = 1;
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// After reset: every pin masked.
    #[must_use]
    pub fn new() -> Self {
        Self { select: 0, id: 0, pins: [MASKED; PINS], pending: 0 }
    }

    /// An edge on `pin`; edges on pins that are not there are dropped.
    pub fn trigger(&mut self, pin: u32) -> Option<Message> {
        if pin as usize >= PINS {
            return None;
        }
        self.pending |= 1 << pin;
        self.deliver(pin)
    }

    /// The message of `pin`, if an edge waits and the pin lets it through.
    fn deliver(&mut self, pin: u32) -> Option<Message> {
        let entry = self.pins.get_mut(pin as usize)?;
        if self.pending & 1 << pin == 0 || *entry & (MASKED | REMOTE_IRR) != 0 {
            return None;
        }
        self.pending &= !(1 << pin);
        let delivery = match *entry >> 8 & 7 {
            0 => Delivery::Fixed,
            1 => Delivery::LowestPriority,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            // SMI and ExtINT have no receiver here, the others are reserved.
            _ => return None,
        };
        let level = *entry & LEVEL != 0 && matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        if level {
            *entry |= REMOTE_IRR;
        }
        Some(Message {
            delivery,
            vector: (*entry & 0xff) as u8,
            logical: *entry & 1 << 11 != 0,
            destination: (*entry >> 56) as u8,
            level,
        })
    }

    /// A local APIC ended a level-triggered interrupt; what waited for that is delivered.
    pub fn end(&mut self, vector: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        for pin in 0..PINS as u32 {
            let Some(entry) = self.pins.get_mut(pin as usize) else { continue };
            if *entry & REMOTE_IRR != 0 && (*entry & 0xff) as u8 == vector {
                *entry &= !REMOTE_IRR;
                messages.extend(self.deliver(pin));
            }
        }
        messages
    }

    /// A read of its registers; they have 32 bits, other widths take part of one.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset & !3 {
            IOREGSEL => self.select.into(),
            IOWIN => self.register(),
            _ => 0,
        };
        let shifted = value >> (8 * (offset & 3));
        for (byte, from) in data.iter_mut().zip(shifted.to_le_bytes().into_iter().chain([0; 4])) {
            *byte = from;
        }
    }

    /// A write; only aligned ones of 32 bits (and of 8 to the index) count. May open a pin with an edge waiting.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Message> {
        let value = match *data {
            [a] => u32::from(a),
            [a, b, c, d, ..] => u32::from_le_bytes([a, b, c, d]),
            _ => return None,
        };
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN if data.len() >= 4 => return self.set_register(value),
            _ => {}
        }
        None
    }

    fn register(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION,
            index => {
                let entry = self.pins.get(pin_of(index)).copied().unwrap_or(0);
                if index & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }
        }
    }

    fn set_register(&mut self, value: u32) -> Option<Message> {
        let index = self.select;
        if index == 0 {
            self.id = (value >> 24) as u8 & 0xf;
            return None;
        }
        let pin = pin_of(index);
        let entry = self.pins.get_mut(pin)?;
        let (old, value) = (*entry, u64::from(value));
        let new = if index & 1 == 0 { old & !0xffff_ffff | value } else { old & 0xffff_ffff | value << 32 };
        *entry = new & WRITABLE | old & REMOTE_IRR;
        if *entry & LEVEL == 0 {
            // A guest without directed ends of interrupts clears it so.
            *entry &= !REMOTE_IRR;
        }
        self.deliver(pin as u32)
    }

    /// Saves it.
    #[must_use]
    pub fn save(&self) -> IoApicState {
        IoApicState { select: self.select, id: self.id, pins: self.pins, pending: self.pending }
    }

    /// Takes back what [`Self::save`] gave.
    ///
    /// # Errors
    /// The state has bits that no chip has.
    pub fn restore(&mut self, state: &IoApicState) -> Result<(), StateError> {
        let bad_pin = state.pins.iter().any(|entry| entry & !(WRITABLE | REMOTE_IRR) != 0);
        if bad_pin || state.pending >> PINS != 0 || state.id > 0xf {
            let why = "it has bits set that the chip does not have".to_owned();
            return Err(StateError::Mismatch { what: IoApicState::NAME, why });
        }
        *self = Self { select: state.select, id: state.id, pins: state.pins, pending: state.pending };
        Ok(())
    }
}

/// The pin whose entry a register index belongs to.
fn pin_of(index: u8) -> usize {
    usize::from(index).checked_sub(0x10).map_or(usize::MAX, |index| index / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(chip: &mut IoApic, index: u8, value: u32) -> Option<Message> {
        assert_eq!(chip.write(IOREGSEL, &[index, 0, 0, 0]), None);
        chip.write(IOWIN, &value.to_le_bytes())
    }

    fn get(chip: &mut IoApic, index: u8) -> u32 {
        chip.write(IOREGSEL, &[index]);
        let mut data = [0; 4];
        chip.read(IOWIN, &mut data);
        u32::from_le_bytes(data)
    }

    fn open(chip: &mut IoApic, pin: u8, low: u32) -> Option<Message> {
        set(chip, 0x11 + 2 * pin, 0x0300_0000);
        set(chip, 0x10 + 2 * pin, low)
    }

    const FIXED: Message =
        Message { delivery: Delivery::Fixed, vector: 0x31, logical: false, destination: 3, level: false };

    #[test]
    fn an_open_pin_sends_one_message_for_each_edge() {
        let mut chip = IoApic::new();
        assert_eq!(open(&mut chip, 5, 0x31), None);
        assert_eq!(chip.trigger(5), Some(FIXED));
        assert_eq!(chip.trigger(5), Some(FIXED));
        assert_eq!(chip.trigger(6), None);
        assert_eq!(chip.trigger(24), None);
        assert_eq!(chip.trigger(u32::MAX), None);
    }

    #[test]
    fn an_edge_on_a_masked_pin_is_kept_until_it_is_opened_and_delivered_once() {
        let mut chip = IoApic::new();
        assert_eq!(chip.trigger(5), None);
        assert_eq!(chip.trigger(5), None);
        assert_eq!(open(&mut chip, 5, 0x31), Some(FIXED));
        assert_eq!(set(&mut chip, 0x1a, 0x31), None);
    }

    #[test]
    fn a_level_pin_waits_for_the_end_of_its_interrupt() {
        let mut chip = IoApic::new();
        open(&mut chip, 7, 0x31 | (LEVEL | ACTIVE_LOW) as u32);
        let level = Message { level: true, ..FIXED };
        assert_eq!(chip.trigger(7), Some(level));
        assert_ne!(get(&mut chip, 0x1e) & REMOTE_IRR as u32, 0);
        assert_eq!(chip.trigger(7), None);
        assert_eq!(chip.end(0x30), []);
        assert_eq!(chip.end(0x31), [level]);
        assert_eq!(chip.end(0x31), []);
        assert_eq!(get(&mut chip, 0x1e) & REMOTE_IRR as u32, 0);
    }

    #[test]
    fn destination_and_delivery_are_as_programmed() {
        let mut chip = IoApic::new();
        set(&mut chip, 0x11, 0xa500_0000);
        set(&mut chip, 0x10, 0x0000_0942);
        let message = chip.trigger(0).unwrap();
        assert_eq!((message.delivery, message.vector), (Delivery::LowestPriority, 0x42));
        assert_eq!((message.logical, message.destination), (true, 0xa5));
        set(&mut chip, 0x10, 0x0000_0700);
        assert_eq!(chip.trigger(0), None, "ExtINT has no receiver");
        set(&mut chip, 0x10, 0x0000_0400);
        assert_eq!(chip.trigger(0).unwrap().delivery, Delivery::Nmi);
    }

    #[test]
    fn registers_read_back_what_may_be_written() {
        let mut chip = IoApic::new();
        assert_eq!(get(&mut chip, 1), 0x0017_0020);
        set(&mut chip, 0, 0xffff_ffff);
        assert_eq!(get(&mut chip, 0), 0x0f00_0000);
        set(&mut chip, 0x3e, 0xffff_ffff);
        assert_eq!(get(&mut chip, 0x3e), 0x0001_afff);
        set(&mut chip, 0x3f, 0xffff_ffff);
        assert_eq!(get(&mut chip, 0x3f), 0xff00_0000);
        // Beyond the last pin, and before the first.
        for index in [0x40, 0xff, 0x0f, 3] {
            assert_eq!(set(&mut chip, index, 0xffff_ffff), None);
            assert_eq!(get(&mut chip, index), 0);
        }
    }

    #[test]
    fn a_pin_with_an_edge_waiting_survives_into_another_chip() {
        let mut chip = IoApic::new();
        open(&mut chip, 2, 0x31 | MASKED as u32);
        chip.trigger(2);
        let mut other = IoApic::new();
        other.restore(&chip.save()).unwrap();
        assert_eq!(set(&mut other, 0x14, 0x31), Some(FIXED));

        for bad in [
            IoApicState { pending: 1 << 24, ..chip.save() },
            IoApicState { id: 16, ..chip.save() },
            IoApicState { pins: [u64::MAX; PINS], ..chip.save() },
        ] {
            assert!(other.restore(&bad).is_err());
        }
    }
}
