//! The checks that every backend passes: the fake in both of its modes, and this host's hypervisor where there is one.
//!
//! A check has a guest program twice: in machine code (of x86 and of arm64) and in Rust, for the fake.

#[cfg(target_arch = "aarch64")]
mod arm64;
mod program;
mod rig;
#[cfg(target_arch = "x86_64")]
mod seldom;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
use arm64 as arch;
#[cfg(target_arch = "x86_64")]
use x86 as arch;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rig::{Bench, DONE, MMIO, PORT, READY, ROM, Recorder};
use servin_devices::event::Event;
use vm_memory::{Bytes, GuestAddress};

use super::fake::FakeCpu;
use super::{Doorbell, Exit, Fault};

/// Makes one test of each check on each backend.
macro_rules! checks {
    ($($check:ident),* $(,)?) => {
        mod on_the_fake {
            $(#[test] fn $check() { super::$check(&super::Bench::fake()); })*
        }
        mod on_the_fake_with_doorbells {
            $(#[test] fn $check() { super::$check(&super::Bench::fake_with_doorbells()); })*
        }
        mod on_this_host {
            $(#[test] fn $check() { super::Bench::host(super::$check); })*
        }
    };
}

checks! {
    memory_accesses_of_1_2_4_and_8_bytes_reach_the_monitor,
    port_accesses_of_1_2_and_4_bytes_and_strings_reach_the_monitor,
    a_kick_before_run_returns_kicked,
    a_kick_during_run_returns_kicked,
    a_kick_in_an_access_returns_kicked_after_the_access,
    an_interrupt_wakes_a_halted_vcpu,
    an_offloaded_doorbell_equals_one_on_the_bus,
    a_taken_back_doorbell_reaches_the_bus_again,
    two_vcpus_run_at_once,
    a_reset_ends_the_run,
    a_power_off_through_the_hypervisor_ends_the_run,
    read_only_memory_is_read_and_not_written,
    registers_survive_into_another_machine,
    pages_that_the_guest_writes_are_told_where_they_are_tracked,
    pages_are_tracked_from_when_somebody_asks,
    parts_may_be_dropped_in_any_order,
    what_is_outside_the_plan_is_refused,
}

fn memory_accesses_of_1_2_4_and_8_bytes_reach_the_monitor(bench: &Bench) {
    let mut test = bench.machine(1, arch::mmio(), |cpu| {
        cpu.write8(MMIO + 0x11, cpu.read8(MMIO + 1));
        cpu.write16(MMIO + 0x12, cpu.read16(MMIO + 2));
        cpu.write32(MMIO + 0x14, cpu.read32(MMIO + 4));
        cpu.write64(MMIO + 0x18, cpu.read64(MMIO + 8));
        cpu.out8(DONE, 1);
    });
    let mut io = test.recorder();
    test.run_until_done(&mut io);
    let echo = |len: usize| {
        let data = (0..len).map(|i| rig::answer(MMIO + len as u64, i)).collect::<Vec<u8>>();
        (MMIO + 0x10 + len as u64, data)
    };
    assert_eq!(io.writes, [echo(1), echo(2), echo(4), echo(8)]);
}

fn port_accesses_of_1_2_and_4_bytes_and_strings_reach_the_monitor(bench: &Bench) {
    let mut test = bench.machine(1, arch::pio(), |cpu| {
        cpu.out8(PORT + 4, cpu.in8(PORT));
        cpu.out16(PORT + 4, cpu.in16(PORT));
        cpu.out32(PORT + 4, cpu.in32(PORT));
        for byte in *b"abc" {
            cpu.out8(PORT + 8, byte);
        }
        cpu.out8(DONE, 1);
    });
    let mut io = test.recorder();
    test.run_until_done(&mut io);
    let echo = |len: usize| (PORT + 4, (0..len).map(|i| rig::answer(PORT.into(), i)).collect::<Vec<u8>>());
    let byte = |byte: u8| (PORT + 8, vec![byte]);
    assert_eq!(io.outs, [echo(1), echo(2), echo(4), byte(b'a'), byte(b'b'), byte(b'c')]);
}

fn a_kick_before_run_returns_kicked(bench: &Bench) {
    let mut test = bench.machine(1, arch::spin(), |_| {});
    let mut io = test.recorder();
    // Before the vCPU has a thread, and after.
    test.kick(0).kick();
    test.kick(0).kick();
    let mut vcpu = test.boot_vcpu();
    assert_eq!(vcpu.run(&mut io).unwrap(), Exit::Kicked);
    for _ in 0..20 {
        test.kick(0).kick();
        test.kick(0).kick();
        assert_eq!(vcpu.run(&mut io).unwrap(), Exit::Kicked);
    }
}

fn a_kick_during_run_returns_kicked(bench: &Bench) {
    let mut test = bench.machine(1, arch::spin(), |_| {});
    let mut io = test.recorder();
    let mut vcpu = test.boot_vcpu();
    let kick = test.kick(0);
    let (go, start) = std::sync::mpsc::channel();
    let kicker = std::thread::spawn(move || {
        for turn in start {
            // Hits the way in, the guest and the way out, as it comes.
            std::thread::sleep(Duration::from_micros(turn));
            kick.kick();
        }
    });
    for turn in 0..50 {
        go.send(turn * 7).unwrap();
        assert_eq!(vcpu.run(&mut io).unwrap(), Exit::Kicked);
    }
    drop(go);
    kicker.join().unwrap();
}

fn a_kick_in_an_access_returns_kicked_after_the_access(bench: &Bench) {
    let mut test = bench.machine(1, arch::mmio(), |cpu| {
        cpu.write8(MMIO + 0x11, cpu.read8(MMIO + 1));
        cpu.write16(MMIO + 0x12, cpu.read16(MMIO + 2));
        cpu.write32(MMIO + 0x14, cpu.read32(MMIO + 4));
        cpu.write64(MMIO + 0x18, cpu.read64(MMIO + 8));
        cpu.out8(DONE, 1);
    });
    let mut io = test.recorder();
    let kick = test.kick(0);
    io.on_read = Some(Box::new(move |_| kick.kick()));
    let mut vcpu = test.boot_vcpu();
    // Each of the four reads kicks; what was read must arrive nevertheless.
    for _ in 0..4 {
        assert_eq!(vcpu.run(&mut io).unwrap(), Exit::Kicked);
    }
    assert_eq!(vcpu.run(&mut io).unwrap(), Exit::Kicked);
    assert!(io.done);
    assert_eq!(io.writes.len(), 4);
    assert_eq!(io.writes[3].1, (0..8).map(|i| rig::answer(MMIO + 8, i)).collect::<Vec<u8>>());
}

fn an_interrupt_wakes_a_halted_vcpu(bench: &Bench) {
    const LINE: u32 = 5;
    let mut test = bench.machine(1, arch::halt(), |cpu| {
        cpu.out8(READY, 1);
        if cpu.wait_irq(LINE, 0, rig::LIMIT).is_some() {
            cpu.out8(DONE, 1);
        }
    });
    let line = test.vm().irq_line(LINE).unwrap();
    let mut io = test.recorder();
    io.on_ready = Some(Box::new(move || {
        let line = Arc::clone(&line);
        std::thread::spawn(move || line.trigger().unwrap());
    }));
    test.run_until_done(&mut io);
}

/// The guest writes 3, 4 and 3 to the register, and half of a 3.
fn ring(cpu: &FakeCpu) {
    cpu.write32(MMIO + 0x50, 3);
    cpu.write32(MMIO + 0x50, 4);
    cpu.write16(MMIO + 0x50, 3);
    cpu.out8(READY, 1);
    cpu.write32(MMIO + 0x50, 3);
    cpu.out8(DONE, 1);
}

const BELL: Doorbell = Doorbell { addr: MMIO + 0x50, len: 4, value: 3 };

fn an_offloaded_doorbell_equals_one_on_the_bus(bench: &Bench) {
    let mut test = bench.machine(1, arch::doorbell(), ring);
    let event = Event::new().unwrap();
    let offload = test.vm().offload(BELL, &event);
    assert_eq!(offload.is_some(), bench.caps().doorbells);
    let mut io = test.recorder();
    let bell = event.clone();
    io.on_write = Some(Box::new(move |addr, data| {
        if addr == BELL.addr && *data == 3_u32.to_le_bytes() {
            bell.signal();
        }
    }));
    test.run_until_done(&mut io);
    assert!(event.take());
    // The write of another value or width is not this doorbell.
    let others: Vec<_> = io.writes.iter().filter(|(_, data)| *data != 3_u32.to_le_bytes()).collect();
    assert_eq!(others, [&(BELL.addr, vec![4, 0, 0, 0]), &(BELL.addr, vec![3, 0])]);
    assert_eq!(io.writes.len() - others.len(), if offload.is_some() { 0 } else { 2 });
}

fn a_taken_back_doorbell_reaches_the_bus_again(bench: &Bench) {
    let mut test = bench.machine(1, arch::doorbell(), ring);
    let event = Event::new().unwrap();
    let mut offload = test.vm().offload(BELL, &event);
    let offloaded = offload.is_some();
    let mut io = test.recorder();
    io.on_ready = Some(Box::new(move || drop(offload.take())));
    test.run_until_done(&mut io);
    assert_eq!(event.take(), offloaded);
    assert_eq!(io.writes.last(), Some(&(BELL.addr, vec![3, 0, 0, 0])));
}

fn two_vcpus_run_at_once(bench: &Bench) {
    let mut test = bench.machine_of(2, arch::start_another(), |cpu| cpu.out8(DONE, 1));
    let mut slots = test.take_slots();
    let (second, kick) = (slots.pop().unwrap(), test.kick(1));
    let done = Arc::new(AtomicUsize::new(0));
    let other = Arc::clone(&done);
    let thread = std::thread::spawn(move || {
        let mut vcpu = second.bind().unwrap();
        let mut io = Recorder::new(Arc::clone(&kick));
        let _watch = rig::Watchdog::new(kick);
        assert_eq!(vcpu.run(&mut io).unwrap(), Exit::Kicked);
        other.fetch_add(usize::from(io.done), Ordering::Relaxed);
    });
    let mut io = test.recorder();
    test.put_slots(slots);
    test.run_until_done(&mut io);
    thread.join().unwrap();
    assert_eq!(done.load(Ordering::Relaxed), 1);
}

fn a_reset_ends_the_run(bench: &Bench) {
    if !bench.caps().triple_fault {
        println!("skipped: a triple fault hangs on {}", bench.caps().variant.unwrap_or(bench.caps().name));
        return;
    }
    let mut test = bench.machine(1, arch::reset(), FakeCpu::reset);
    let mut io = test.recorder();
    let _watch = rig::Watchdog::new(test.kick(0));
    assert_eq!(test.boot_vcpu().run(&mut io).unwrap(), Exit::Reset);
}

fn a_power_off_through_the_hypervisor_ends_the_run(bench: &Bench) {
    let Some(program) = arch::power_off().or(bench.is_fake().then_some(&[])) else {
        // Guests on x86 power off through a device.
        return;
    };
    let mut test = bench.machine(1, program, FakeCpu::power_off);
    let mut io = test.recorder();
    let _watch = rig::Watchdog::new(test.kick(0));
    assert_eq!(test.boot_vcpu().run(&mut io).unwrap(), Exit::Off);
}

fn read_only_memory_is_read_and_not_written(bench: &Bench) {
    assert!(bench.caps().read_only);
    let mut test = bench.machine(1, arch::rom(), |cpu| {
        cpu.out32(PORT, cpu.read32(ROM));
        cpu.write32(ROM, 7);
        cpu.out32(PORT, cpu.read32(ROM));
        cpu.out8(DONE, 1);
    });
    let mut io = test.recorder();
    test.run_until_done(&mut io);
    let content = rig::ROM_CONTENT.to_le_bytes().to_vec();
    assert_eq!(io.outs, [(PORT, content.clone()), (PORT, content)]);
    assert_eq!(io.writes, [(ROM, vec![7, 0, 0, 0])]);
    assert_eq!(test.mem.read_obj::<u32>(GuestAddress(ROM)).unwrap(), rig::ROM_CONTENT);
}

fn registers_survive_into_another_machine(bench: &Bench) {
    const VALUES: [u64; 2] = [0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00];
    let mut first = bench.machine(1, arch::registers(), |cpu| {
        cpu.set_register(3, VALUES[0]);
        cpu.set_register(5, VALUES[1]);
        cpu.out8(DONE, 1);
    });
    let mut io = first.recorder();
    let mut vcpu = first.boot_vcpu();
    first.run_vcpu_until_done(&mut *vcpu, &mut io);
    let (vcpu_state, machine_state) = (vcpu.save().unwrap(), first.vm().save().unwrap());
    let mem = Arc::clone(&first.mem);
    drop((vcpu, first));

    let mut second = bench.machine_on(mem, |cpu| {
        cpu.write64(MMIO, cpu.register(3).unwrap());
        cpu.write64(MMIO + 8, cpu.register(5).unwrap());
        cpu.out8(DONE, 1);
    });
    second.vm().restore(&machine_state).unwrap();
    let mut io = second.recorder();
    let mut vcpu = second.take_slots().remove(0).bind().unwrap();
    vcpu.restore(&vcpu_state).unwrap();
    second.start_guest();
    second.run_vcpu_until_done(&mut *vcpu, &mut io);
    assert_eq!(io.writes[0], (MMIO, VALUES[0].to_le_bytes().to_vec()));
    assert_eq!(io.writes[1], (MMIO + 8, VALUES[1].to_le_bytes().to_vec()));
}

/// The guest writes one page of its stack.
fn writes_its_stack(cpu: &FakeCpu) {
    cpu.write64(rig::STACK - 8, 1);
    cpu.out8(DONE, 1);
}

fn is_dirty(log: &[u64], page: u64) -> bool {
    log[page as usize / 64] >> (page % 64) & 1 == 1
}

fn pages_that_the_guest_writes_are_told_where_they_are_tracked(bench: &Bench) {
    let mut test = bench.machine(1, arch::registers(), writes_its_stack);
    let mut io = test.recorder();
    test.run_until_done(&mut io);
    let stack = (rig::STACK - 8) / 0x1000;
    let Some(log) = test.vm().take_dirty(0) else {
        // Hypervisor.framework does not tell.
        assert_eq!(bench.caps().name, "hvf");
        return;
    };
    let log = log.unwrap();
    assert!(is_dirty(&log, stack) && !is_dirty(&log, 0x100));
    // Taking the log clears it; the ROM has none of its own.
    assert!(!is_dirty(&test.vm().take_dirty(0).unwrap().unwrap(), stack));
    assert!(test.vm().take_dirty(1).is_none() && test.vm().take_dirty(2).is_none());
}

fn pages_are_tracked_from_when_somebody_asks(bench: &Bench) {
    let mut test = bench.untracked(arch::registers(), writes_its_stack);
    assert!(test.vm().take_dirty(0).is_none());
    let Some(tracked) = test.vm().track_dirty() else {
        assert!(["hvf", "whp"].contains(&bench.caps().name));
        return;
    };
    tracked.unwrap();
    // Twice is as good as once.
    test.vm().track_dirty().unwrap().unwrap();
    let stack = (rig::STACK - 8) / 0x1000;
    assert!(!is_dirty(&test.vm().take_dirty(0).unwrap().unwrap(), stack));
    let mut io = test.recorder();
    test.run_until_done(&mut io);
    let log = test.vm().take_dirty(0).unwrap().unwrap();
    assert!(is_dirty(&log, stack) && !is_dirty(&log, 0x100));
    assert!(test.vm().take_dirty(1).is_none());
}

fn parts_may_be_dropped_in_any_order(bench: &Bench) {
    for vm_first in [true, false] {
        let mut test = bench.machine(1, arch::spin(), |_| {});
        let vm = test.take_vm();
        let (line, event) = (vm.irq_line(5).unwrap(), Event::new().unwrap());
        let offload = vm.offload(BELL, &event);
        let kick = test.kick(0);
        let vcpu = test.boot_vcpu();
        if vm_first {
            drop(vm);
            drop(vcpu);
            drop(offload);
        } else {
            drop(offload);
            drop(vcpu);
            drop(vm);
        }
        // Nobody is there any more; neither is an error.
        kick.kick();
        let _ = line.trigger();
        drop(line);
    }
}

fn what_is_outside_the_plan_is_refused(bench: &Bench) {
    let test = bench.machine(1, arch::spin(), |_| {});
    assert!(test.vm().irq_line(rig::GSIS).is_err());
    for cpus in [0, super::MAX_CPUS + 1] {
        assert!(
            bench.hypervisor().create(&super::Plan::new(Arc::clone(&test.mem), cpus, rig::GSIS)).is_err()
        );
    }
}

#[test]
fn a_fault_of_the_fake_ends_the_run() {
    let fault = Fault { why: "no such instruction".to_owned(), pc: Some(0x1000), bytes: vec![0x0f, 0x0b] };
    let told = fault.clone();
    let mut test = Bench::fake().machine(1, arch::spin(), move |cpu| cpu.fault(told.clone()));
    let mut io = test.recorder();
    assert_eq!(test.boot_vcpu().run(&mut io).unwrap(), Exit::Fault(fault.clone()));
    assert_eq!(fault.to_string(), "no such instruction at 0x1000, instruction 0f 0b");
}
