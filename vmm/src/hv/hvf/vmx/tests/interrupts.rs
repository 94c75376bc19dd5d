//! Interrupts, halts, kicks, and other vCPUs.

use std::thread;

use super::*;
use crate::hv::hvf::vmx::api::{Api, FOREVER};
use crate::hv::hvf::vmx::fields::secondary;

/// RFLAGS.
const IF: u64 = 1 << 9;

#[test]
fn a_line_interrupts_at_once_or_opens_a_window_until_the_guest_lets_it() {
    let mut rig = Rig::new();
    rig.open_line();
    rig.machine.vm.irq_line(5).unwrap().trigger().unwrap();
    // Interrupts are off: the window is asked for.
    rig.script.exit(reason::INTERRUPT_WINDOW, &[], &[(reg::RFLAGS, 2 | IF)]);
    rig.through();
    let entries = rig.script.entries();
    let [.., (first, controls, _), (second, after, _)] = entries.as_slice() else { panic!() };
    assert_eq!((*first >> 31, *controls as u32 & primary::INTERRUPT_WINDOW), (0, primary::INTERRUPT_WINDOW));
    assert_eq!((*second, *after as u32 & primary::INTERRUPT_WINDOW), (0x35 | 1 << 31, 0));
    // STI holds it back for an instruction.
    rig.touch(&STORE, lapic::BASE + 0xb0, 0);
    rig.through();
    rig.script.put_field(fields::INTERRUPTIBILITY, 1);
    rig.machine.vm.irq_line(5).unwrap().trigger().unwrap();
    rig.script.exit(reason::INTERRUPT_WINDOW, &[(fields::INTERRUPTIBILITY, 0)], &[]);
    let before = rig.script.entries().len();
    rig.through();
    let entries = rig.script.entries();
    assert_eq!((entries[before].0 >> 31, entries[before + 1].0), (0, 0x35 | 1 << 31));
}

#[test]
fn what_an_exit_cut_short_is_delivered_again() {
    let mut rig = Rig::new();
    let cut = 14 | 3 << 8 | 1 << 11 | 1 << 31 | 1 << 12;
    let fields =
        [(fields::VECTORING_EVENT, cut), (fields::VECTORING_ERROR, 2), (fields::INSTRUCTION_LENGTH, 3)];
    rig.script.exit(reason::EXTERNAL_INTERRUPT, &fields, &[]);
    rig.through();
    assert_eq!(rig.delivered(), cut & !(1 << 12));
    assert_eq!(rig.script.field(0, fields::ENTRY_ERROR), 2);
    // One that was not entered keeps its event.
    rig.script.exit(reason::VMCALL, &[], &[]);
    rig.script.push(Run::Early);
    rig.through();
    let entries = rig.script.entries();
    assert_eq!([entries[entries.len() - 2].0, entries[entries.len() - 1].0], [UD, UD]);
}

#[test]
fn a_halted_guest_waits_for_a_line_a_timer_or_a_kick() {
    let mut rig = Rig::new();
    rig.open_line();
    let line = rig.machine.vm.irq_line(5).unwrap();
    rig.script.exit(reason::HLT, &[(fields::INSTRUCTION_LENGTH, 1)], &[(reg::RFLAGS, 2 | IF)]);
    let trigger = thread::spawn(move || line.trigger().unwrap());
    rig.through();
    trigger.join().unwrap();
    assert_eq!(rig.script.entries().iter().filter(|(event, ..)| *event == 0x35 | 1 << 31).count(), 1);
    // The timer's end is the deadline of an entry, and of a wait.
    let mut rig = Rig::new();
    rig.open_line();
    for (offset, value) in [(0x3e0, 0b1011), (0x320, 0x40), (0x380, 1000)] {
        rig.touch(&STORE, lapic::BASE + offset, value);
    }
    rig.through();
    assert_eq!(rig.script.entries().last().unwrap().2, 1000);
    rig.script.put_clocks(1000, 0);
    rig.script.exit(reason::HLT, &[], &[(reg::RFLAGS, 2 | IF)]);
    rig.script.exit(reason::TIMER, &[], &[]);
    rig.through();
    let entries = rig.script.entries();
    assert!(entries.iter().any(|(event, ..)| *event == 0x40 | 1 << 31));
    assert_eq!(entries.last().unwrap().2, FOREVER);
}

#[test]
fn a_kick_before_a_run_and_one_during_it_end_it_and_an_interruption_without_one_does_not() {
    let mut rig = Rig::new();
    rig.script.push(Run::Stay);
    let script = rig.script.clone();
    let thread = thread::spawn(move || {
        while script.entries().is_empty() {
            thread::yield_now();
        }
        script.interrupt(0).unwrap();
    });
    // The first entry stays until it is interrupted; the second is the one that is kicked.
    rig.through();
    thread.join().unwrap();
    assert_eq!(rig.script.entries().len(), 2);
    let mut slots = machine(&rig.script, 1).unwrap().0.slots;
    let slot = slots.remove(0);
    slot.kick().kick();
    assert_eq!(slot.bind().unwrap().run(&mut rig.devices).unwrap(), Exit::Kicked);
    assert_eq!(rig.script.entries().len(), 2, "it was not entered");
}

#[test]
fn another_vcpu_waits_for_sipi_and_begins_where_it_says() {
    let mut rig = Rig::of(2, X86Mode::Protected);
    let slot = rig.machine.slots.remove(0);
    let (kick, script) = (slot.kick(), rig.script.clone());
    let (told, bound) = std::sync::mpsc::channel();
    let second = thread::spawn(move || {
        let mut vcpu = slot.bind().unwrap();
        told.send(()).unwrap();
        vcpu.run(&mut Devices::default()).unwrap()
    });
    bound.recv().unwrap();
    // INIT and SIPI for page 8; the second vCPU then stays inside.
    for (offset, value) in [(0xf0, 0x1ff), (0x310, 1 << 24), (0x300, 0x4500), (0x300, 0x4608)] {
        rig.touch(&STORE, lapic::BASE + offset, value);
    }
    // Kicked when all is sent: an exit for each register, then the end of the script for either vCPU.
    rig.through();
    let started = |script: &Script| script.field(1, fields::BASE + 2 * fields::CS) == 0x8000;
    while !started(&script) {
        thread::yield_now();
    }
    kick.kick();
    assert_eq!(second.join().unwrap(), Exit::Kicked);
    assert_eq!(script.field(1, fields::SELECTOR + 2 * fields::CS), 0x800);
    assert_eq!(script.field(1, fields::CR0) & 1, 0);
    assert_eq!(
        script.field(1, fields::SECONDARY_CONTROLS) as u32 & secondary::UNRESTRICTED,
        secondary::UNRESTRICTED
    );
}
