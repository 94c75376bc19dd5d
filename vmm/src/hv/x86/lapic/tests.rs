//! Signals, registers, the timer and the state of one chip.

use super::*;

const FIXED: Signal = Signal::Fixed { vector: 0x31, level: false };

fn put(chip: &mut Lapic, offset: u64, value: u32) -> Effect {
    chip.write(offset, &value.to_le_bytes(), 0)
}

fn ask(chip: &Lapic, offset: u64, now: u64) -> u32 {
    let mut data = [0; 4];
    chip.read(offset, &mut data, now);
    u32::from_le_bytes(data)
}

fn enabled(id: u8) -> Lapic {
    let mut chip = Lapic::new(id);
    put(&mut chip, 0xf0, 0x1ff);
    chip
}

#[test]
fn interrupts_are_taken_by_priority_and_ended_in_reverse() {
    let mut chip = enabled(0);
    assert!(chip.post(FIXED) && chip.post(Signal::Fixed { vector: 0x52, level: true }));
    assert_eq!(chip.pending(), Some(0x52));
    chip.accept(0x52);
    // The lower one waits for the end of the higher, which the I/O APIC is told of.
    assert_eq!((chip.pending(), ask(&chip, 0xa0, 0)), (None, 0x50));
    assert_eq!(put(&mut chip, 0xb0, 0), Effect::End(0x52));
    assert_eq!(chip.pending(), Some(0x31));
    chip.accept(0x31);
    assert_eq!(put(&mut chip, 0xb0, 0), Effect::None);
    assert_eq!(put(&mut chip, 0xb0, 0), Effect::None);
}

#[test]
fn the_task_priority_holds_back_its_class_and_those_below() {
    let mut chip = enabled(0);
    chip.post(FIXED);
    chip.set_task_priority(3);
    assert_eq!((chip.pending(), ask(&chip, 0x80, 0)), (None, 0x30));
    chip.set_task_priority(2);
    assert_eq!((chip.pending(), chip.task_priority()), (Some(0x31), 2));
}

#[test]
fn a_disabled_chip_takes_no_interrupts_but_nmi_init_and_sipi() {
    let mut chip = Lapic::new(1);
    assert!(!chip.post(FIXED) && chip.post(Signal::Nmi) && chip.has_nmi());
    put(&mut chip, 0x320, 0x31);
    assert_eq!(ask(&chip, 0x320, 0), 0x1_0031, "masked while disabled");
    assert!(chip.waits() && chip.take_startup().is_none());
    assert!(chip.post(Signal::Startup { vector: 8 }));
    assert_eq!(chip.take_startup(), Some(8));
    // The second SIPI of a pair says nothing to one that runs.
    assert!(!chip.post(Signal::Startup { vector: 8 }) && !chip.waits());
    assert!(chip.post(Signal::Init) && chip.post(Signal::Startup { vector: 9 }));
    assert!(chip.take_init() && !chip.take_init() && chip.waits());
    assert_eq!(chip.take_startup(), Some(9));
}

#[test]
fn commands_name_signal_and_receivers() {
    let mut chip = enabled(0);
    put(&mut chip, 0x310, 0x0100_0000);
    let send = |signal, lowest, to| Effect::Send(Ipi { signal, lowest, to });
    let one = To::Physical(1);
    assert_eq!(put(&mut chip, 0x300, 0x4500), send(Signal::Init, false, one));
    assert_eq!(put(&mut chip, 0x300, 0x8500), Effect::None, "the end of an INIT");
    assert_eq!(put(&mut chip, 0x300, 0x4608), send(Signal::Startup { vector: 8 }, false, one));
    assert_eq!(put(&mut chip, 0x300, 0xc_0031), send(FIXED, false, To::Others));
    assert_eq!(put(&mut chip, 0x300, 0x4_0031), send(FIXED, false, To::Own));
    assert_eq!(put(&mut chip, 0x300, 0x8_0400), send(Signal::Nmi, false, To::All));
    assert_eq!(put(&mut chip, 0x300, 0x931), send(FIXED, true, To::Logical(1)));
    assert_eq!((put(&mut chip, 0x300, 3), put(&mut chip, 0x280, 0)), (Effect::None, Effect::None));
    assert_eq!(ask(&chip, 0x280, 0), SEND_ILLEGAL);
}

#[test]
fn receivers_are_found_by_id_by_flat_and_by_clustered_names() {
    let mut chip = enabled(2);
    assert!(chip.hears(To::Physical(2), None) && chip.hears(To::Physical(0xff), None));
    assert!(
        !chip.hears(To::Physical(3), None)
            && !chip.hears(To::Others, Some(2))
            && chip.hears(To::Own, Some(2))
    );
    put(&mut chip, 0xd0, 0x1400_0000);
    assert!(chip.hears(To::Logical(0x04), None) && !chip.hears(To::Logical(0x0b), None));
    put(&mut chip, 0xe0, 0x0fff_ffff);
    assert!(chip.hears(To::Logical(0x14), None) && !chip.hears(To::Logical(0x04), None));
}

#[test]
fn the_timer_fires_once_or_periodically_and_tells_what_is_left() {
    let mut chip = enabled(0);
    put(&mut chip, 0x3e0, 0b1011);
    put(&mut chip, 0x320, 0x40);
    chip.write(0x380, &1000_u32.to_le_bytes(), 500);
    assert_eq!((chip.deadline(), ask(&chip, 0x390, 900)), (Some(1500), 600));
    chip.tick(1499);
    assert_eq!(chip.pending(), None);
    chip.tick(1500);
    assert_eq!((chip.pending(), chip.deadline(), ask(&chip, 0x390, 1600)), (Some(0x40), None, 0));

    // Periodic, a count every 2 ns.
    let mut chip = enabled(0);
    put(&mut chip, 0x320, 0x2_0041);
    put(&mut chip, 0x380, 100);
    chip.tick(750);
    assert_eq!((chip.pending(), chip.deadline(), ask(&chip, 0x390, 750)), (Some(0x41), Some(800), 25));
}

#[test]
fn a_timer_goes_on_where_it_was_after_a_restore() {
    let mut chip = enabled(3);
    put(&mut chip, 0x3e0, 0b1011);
    put(&mut chip, 0x320, 0x40);
    put(&mut chip, 0x380, 1000);
    let saved = chip.save(400);
    let mut other = Lapic::new(3);
    other.restore(&saved, 9000).unwrap();
    assert_eq!(other.deadline(), Some(9600));
    assert!(Lapic::new(2).restore(&saved, 0).is_err());
    let damaged = Lapic { request: [1, 0, 0, 0, 0, 0, 0, 0], ..saved };
    assert!(other.restore(&damaged, 0).is_err());
}

#[test]
fn no_access_of_any_width_or_place_breaks_it() {
    let mut chip = enabled(0);
    for offset in 0..SIZE {
        for width in [1, 2, 4, 8] {
            for value in [0, 0xff, u8::MAX / 3] {
                let mut data = [value; 8];
                chip.write(offset, &data[..width], u64::MAX - offset);
                chip.read(offset, &mut data[..width], offset);
                chip.tick(u64::MAX);
            }
        }
    }
}
