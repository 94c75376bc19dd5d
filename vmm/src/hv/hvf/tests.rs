//! The backend on a scripted framework: what is set up, how traps are answered, interrupts, waits, kicks, state.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::Hvf;
use super::api::{BUSY, DENIED, GicSizes, HvError, RawExit, UNSUPPORTED, reason, reg, sys};
use super::testing::{COUNTER_HZ, Run, Script, machine, mem};
use crate::Error;
use crate::hv::x86::testing::Devices;
use crate::hv::{Arm64Entry, Entry, Exit, Hypervisor, Kick, Machine, Plan, Vcpu};
use crate::layout::aarch64::{GIC_DISTRIBUTOR, GIC_REDISTRIBUTORS, RAM};

const DEVICE: u64 = 0x0a00_0000;
const WFI: u64 = 0x01 << 26;
const HVC: u64 = 0x16 << 26;
const SMC: u64 = 0x17 << 26;
const XZR: u64 = 31;

/// A data abort of `size` bytes by register `rt`.
fn data(addr: u64, write: bool, size: u64, rt: u64) -> Run {
    let sas = u64::from(size.trailing_zeros());
    let syndrome =
        0x24 << 26 | 1 << 24 | sas << 22 | rt << 16 | u64::from(size == 8) << 15 | u64::from(write) << 6;
    exception(syndrome, addr)
}

fn exception(syndrome: u64, addr: u64) -> Run {
    Run::Exit(RawExit { reason: reason::EXCEPTION, syndrome, virtual_address: 0, physical_address: addr })
}

/// An access to `S3_0_C<crn>_C<crm>_<op2>` by register `rt`.
fn register(crn: u64, crm: u64, op2: u64, rt: u64, read: bool) -> Run {
    exception(0x18 << 26 | 3 << 20 | op2 << 17 | crn << 10 | rt << 5 | crm << 1 | u64::from(read), 0)
}

/// The first vCPU of a machine at the start of RAM, the machine, and the vCPU's kick.
fn vcpu(script: &Script, cpus: u8) -> (Box<dyn Vcpu>, Machine, Arc<dyn Kick>) {
    let mut machine = machine(script, cpus).unwrap();
    let slot = machine.slots.remove(0);
    let kick = slot.kick();
    script.kick_at_end(Arc::clone(&kick));
    let mut vcpu = slot.bind().unwrap();
    vcpu.set_entry(&Entry::Arm64(Arm64Entry { pc: RAM, x0: 0x4800_0000 })).unwrap();
    (vcpu, machine, kick)
}

/// Runs the exits to their end with these registers.
fn run(registers: &[(u32, u64)], exits: impl IntoIterator<Item = Run>) -> (Script, Devices) {
    let script = Script::new();
    let (mut vcpu, _machine, _) = vcpu(&script, 2);
    for (number, value) in registers {
        script.put_x(*number, *value);
    }
    exits.into_iter().for_each(|exit| script.push(exit));
    let mut devices = Devices { answers: vec![0x81, 0x82, 0x83, 0x84], ..Devices::default() };
    assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::Kicked);
    (script, devices)
}

#[test]
fn a_machine_is_set_up_in_order_and_taken_down_in_reverse() {
    let script = Script::new();
    let (vcpu, machine, _) = vcpu(&script, 1);
    drop(machine);
    drop(vcpu);
    let calls = script.calls();
    let named: Vec<_> = calls
        .iter()
        .map(String::as_str)
        .filter(|call| !call.starts_with('x') && !call.starts_with("max"))
        .collect();
    assert_eq!(
        named,
        [
            "create",
            "map 0x40000000 0x40000 7",
            "map 0x40100000 0x4000 5",
            "vcpu create",
            "get 0xc080",
            "set 0xc005",
            "offset 0 1000000",
            "set 0xc080",
            "vcpu destroy 0",
            "destroy",
        ]
    );
}

#[test]
fn the_frameworks_gic_is_used_where_it_fits_and_ours_elsewhere() {
    let gics = |script: &Script| {
        drop(machine(script, 2).unwrap());
        script.calls().iter().filter(|call| call.starts_with("gic")).count()
    };
    let script = Script::with_gic();
    assert_eq!(gics(&script), 1);
    assert!(script.calls().contains(&format!("gic {GIC_DISTRIBUTOR:#x} {GIC_REDISTRIBUTORS:#x}")));
    assert_eq!(gics(&Script::new()), 0);
    let fits = GicSizes {
        distributor: 0x1_0000,
        redistributors: 0x10_0000,
        alignment: 0x1_0000,
        first_spi: 32,
        spis: 988,
    };
    for sizes in [
        GicSizes { redistributors: 0x200_0000, ..fits },
        GicSizes { distributor: 0x2_0000, ..fits },
        GicSizes { alignment: 0x1000_0000, ..fits },
        GicSizes { alignment: 0, ..fits },
        GicSizes { spis: 63, ..fits },
        GicSizes { first_spi: 64, ..fits },
        GicSizes { spis: u32::MAX, first_spi: u32::MAX, ..fits },
    ] {
        let script = Script::new();
        script.set_gic(sizes);
        assert_eq!(gics(&script), 0, "{sizes:?}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let create = |name, error| {
        let script = Script::with_gic();
        script.fail(name, error);
        (machine(&script, 1).map(drop).unwrap_err().to_string(), script)
    };
    assert!(create("max_vcpus", UNSUPPORTED).0.contains("nested virtualization"));
    let (busy, script) = create("vm_create", BUSY);
    assert!(busy.contains("one for each process"), "{busy}");
    assert!(!script.calls().contains(&"destroy".to_owned()));
    assert!(create("vm_create", DENIED).0.contains("com.apple.security.hypervisor"));
    for call in ["map", "gic_create"] {
        let (error, script) = create(call, HvError(-1));
        assert!(error.starts_with("hypervisor:"), "{error}");
        assert_eq!(script.calls().last().unwrap(), "destroy");
    }
    let script = Script::new();
    let hvf = Hvf::with(Arc::new(script)).unwrap();
    for plan in [Plan::new(mem().0, 0, 64), Plan::new(mem().0, 9, 64), Plan::new(mem().0, 1, 257)] {
        assert!(matches!(hvf.create(&plan), Err(Error::Config(_))));
    }
}

#[test]
fn the_first_registers_are_those_of_the_entry() {
    let script = Script::new();
    script.put_system(sys::SCTLR_EL1, 0x30d0_0980);
    let (mut vcpu, _machine, _) = vcpu(&script, 1);
    assert_eq!(vcpu.program_counter().unwrap(), RAM);
    assert_eq!((script.x(0), script.x(reg::CPSR)), (0x4800_0000, 0x3c5));
    assert_eq!(script.system(sys::MPIDR_EL1), 0x8000_0000);
    // A CPU that is started anew begins with the MMU off.
    script.put_system(sys::SCTLR_EL1, 0x30d0_0981);
    script.put_x(5, 7);
    vcpu.set_entry(&Entry::Arm64(Arm64Entry { pc: RAM + 4, x0: 1 })).unwrap();
    assert_eq!((script.system(sys::SCTLR_EL1), script.x(5), script.x(0)), (0x30d0_0980, 0, 1));
}

#[test]
fn loads_and_stores_reach_the_monitor_and_the_pc_advances() {
    let (script, devices) = run(
        &[(3, 0x1122_3344_5566_7788)],
        [
            data(DEVICE, true, 4, 3),
            data(DEVICE + 8, true, 8, XZR),
            data(DEVICE + 1, false, 1, 4),
            data(DEVICE + 2, false, 2, XZR),
        ],
    );
    let expected = [(DEVICE, vec![0x88, 0x77, 0x66, 0x55]), (DEVICE + 8, vec![0; 8])];
    assert_eq!(devices.writes, expected);
    assert_eq!(devices.reads, [(DEVICE + 1, 1), (DEVICE + 2, 2)]);
    assert_eq!(script.x(4), 0x81);
    // Register 31 of the framework is the PC, and a load into the zero register must not reach it.
    assert_eq!(script.x(reg::PC), RAM + 16);
}

#[test]
fn cache_maintenance_on_a_device_does_nothing() {
    let (script, devices) = run(&[], [exception(0x24 << 26 | 1 << 8 | 1 << 6, DEVICE)]);
    assert_eq!((script.x(reg::PC), devices.writes.len()), (RAM + 4, 0));
}

#[test]
fn traps_that_no_guest_goes_on_from_are_faults_with_a_reason() {
    for (exit, expected) in [
        (exception(0x24 << 26 | 1 << 6, DEVICE), "does not describe"),
        (exception(0x24 << 26 | 1 << 7, DEVICE), "page tables are at 0xa000000"),
        (exception(0x20 << 26, DEVICE), "executes at 0xa000000"),
        (exception(0x3c << 26, 0), "debug"),
        (exception(0x3f << 26, 0), "class 0x3f"),
        (Run::Exit(RawExit { reason: 3, ..RawExit::default() }), "exit reason 3"),
        (Run::Exit(RawExit { reason: u32::MAX, ..RawExit::default() }), "exit reason 4294967295"),
    ] {
        let script = Script::new();
        let (mut vcpu, _machine, _) = vcpu(&script, 1);
        script.push(exit);
        match vcpu.run(&mut Devices::default()).unwrap() {
            Exit::Fault(fault) => {
                assert!(fault.why.contains(expected), "{}", fault.why);
                assert_eq!(fault.pc, Some(RAM));
            }
            other => panic!("{other:?}"),
        }
    }
    let script = Script::new();
    let (mut vcpu, _machine, _) = vcpu(&script, 1);
    script.push(Run::Fail(HvError(-1)));
    assert!(matches!(vcpu.run(&mut Devices::default()), Err(Error::Hypervisor { .. })));
}

#[test]
fn calls_of_psci_are_answered_by_hvc_and_smc() {
    let (script, _) = run(&[(0, 0x8400_0000)], [exception(HVC, 0)]);
    assert_eq!((script.x(0), script.x(reg::PC)), (0x1_0001, RAM), "the framework stands behind an HVC");
    let (script, _) = run(&[(0, 0x8400_0000)], [exception(SMC, 0)]);
    assert_eq!((script.x(0), script.x(reg::PC)), (0x1_0001, RAM + 4));
    let (script, _) = run(&[(0, 0x8400_0008)], [exception(HVC | 1, 0)]);
    assert_eq!(script.x(0), u64::MAX, "HVC 1 is not PSCI");

    let script = Script::new();
    let (mut vcpu, _machine, _) = vcpu(&script, 2);
    let mut call = |registers: [u64; 4]| {
        for (number, value) in (0..).zip(registers) {
            script.put_x(number, value);
        }
        script.push(exception(HVC, 0));
        vcpu.run(&mut Devices::default()).unwrap()
    };
    let on = Exit::CpuOn { cpu: 1, entry: RAM + 64, context: 9 };
    assert_eq!(call([0xc400_0003, 1, RAM + 64, 9]), on);
    assert_eq!(script.x(0), 0);
    assert_eq!(call([0x8400_0002, 0, 0, 0]), Exit::CpuOff);
    assert_eq!(call([0x8400_0008, 0, 0, 0]), Exit::Off);
    assert_eq!(call([0x8400_0009, 0, 0, 0]), Exit::Reset);
}

#[test]
fn an_unknown_system_register_is_undefined_to_the_guest() {
    let script = Script::new();
    let (mut vcpu, _machine, _) = vcpu(&script, 1);
    script.put_system(sys::VBAR_EL1, 0x4010_0000);
    script.put_x(reg::CPSR, 0x6000_0005);
    script.push(register(1, 2, 3, 0, true));
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    assert_eq!(script.x(reg::PC), 0x4010_0200);
    assert_eq!((script.system(sys::ELR_EL1), script.system(sys::SPSR_EL1)), (RAM, 0x6000_0005));
    assert_eq!((script.system(sys::ESR_EL1), script.x(reg::CPSR)), (1 << 25, 0x3c5));
    // From EL0.
    script.put_x(reg::CPSR, 0);
    script.push(register(1, 2, 3, 0, false));
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    assert_eq!(script.x(reg::PC), 0x4010_0400);
}

/// Lets the guest set its interrupt controller up for shared interrupt 3 and the timer.
fn with_interrupts(script: &Script, vcpu: &mut dyn Vcpu) {
    let mut put = |run: Run, value: u64| {
        script.put_x(9, value);
        script.push(run);
        assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    };
    put(data(GIC_DISTRIBUTOR, true, 4, 9), 2);
    for bank in [0x84, 0x104] {
        put(data(GIC_DISTRIBUTOR + bank, true, 4, 9), u32::MAX.into());
    }
    put(data(GIC_DISTRIBUTOR + 0xc08, true, 4, 9), 0xaaaa_aaaa);
    for bank in [0x1_0080, 0x1_0100] {
        put(data(GIC_REDISTRIBUTORS + bank, true, 4, 9), u32::MAX.into());
    }
    put(register(4, 6, 0, 9, false), 0xf0);
    put(register(12, 12, 7, 9, false), 1);
}

/// Takes an interrupt and ends it.
fn take(script: &Script, vcpu: &mut dyn Vcpu) -> u64 {
    script.push(register(12, 12, 0, 5, true));
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    let intid = script.x(5);
    script.push(register(12, 12, 1, 5, false));
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    intid
}

/// Calls `act` on another thread while the guest stays where it is, and kicks once the guest was shown an interrupt.
fn kick_when_shown(
    script: &Script,
    kick: &Arc<dyn Kick>,
    act: impl FnOnce() + Send + 'static,
) -> thread::JoinHandle<()> {
    (0..8).for_each(|_| script.push(Run::Stay));
    let (script, kick) = (script.clone(), Arc::clone(kick));
    thread::spawn(move || {
        act();
        let begun = std::time::Instant::now();
        while script.shown().last() != Some(&(true, false)) && begun.elapsed() < Duration::from_secs(30) {
            thread::yield_now();
        }
        kick.kick();
    })
}

#[test]
fn a_line_interrupts_a_running_vcpu_and_is_shown_until_it_is_taken() {
    let script = Script::new();
    let (mut vcpu, machine, kick) = vcpu(&script, 1);
    with_interrupts(&script, &mut *vcpu);
    let line = machine.vm.irq_line(3).unwrap();
    let before = script.shown().len();
    let trigger = kick_when_shown(&script, &kick, move || line.trigger().unwrap());
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    trigger.join().unwrap();
    while script.take_run() {}
    // The line came before the run or during it; either way the last entry showed it.
    let shown = script.shown();
    assert_eq!(shown.last(), Some(&(true, false)));
    assert!(shown.len() - before <= 4, "it did not spin");
    assert_eq!(take(&script, &mut *vcpu), 35);
    assert_eq!(script.shown().last(), Some(&(false, false)));
    assert!(machine.vm.irq_line(64).is_err());
}

#[test]
fn the_virtual_timer_fires_once_and_again_after_the_guest_dealt_with_it() {
    let script = Script::new();
    let (mut vcpu, _machine, _) = vcpu(&script, 1);
    with_interrupts(&script, &mut *vcpu);
    // Enabled, condition met.
    script.put_system(sys::CNTV_CTL_EL0, 5);
    script.push(Run::Exit(RawExit { reason: reason::VTIMER_ACTIVATED, ..RawExit::default() }));
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    assert_eq!(script.shown().last(), Some(&(true, false)));
    assert!(!script.calls().contains(&"vtimer mask false".to_owned()));
    assert_eq!(take(&script, &mut *vcpu), 27);
    assert_eq!(script.shown().last(), Some(&(true, false)), "a level is there until it falls");
    // The guest sets the next deadline.
    script.put_system(sys::CNTV_CTL_EL0, 1);
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    assert!(script.calls().contains(&"vtimer mask false".to_owned()));
    assert_eq!(script.shown().last(), Some(&(false, false)));
}

#[test]
fn a_waiting_guest_is_woken_by_a_line_a_kick_and_its_timer() {
    let script = Script::new();
    let (mut vcpu, machine, kick) = vcpu(&script, 1);
    with_interrupts(&script, &mut *vcpu);
    // A kick, with no timer running.
    script.push(exception(WFI, 0));
    let kicker = Arc::clone(&kick);
    let thread = thread::spawn(move || kicker.kick());
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    thread.join().unwrap();
    while script.take_run() {}

    // A line: the guest goes on, and is shown the interrupt.
    let line = machine.vm.irq_line(3).unwrap();
    script.push(exception(WFI, 0));
    let thread = kick_when_shown(&script, &kick, move || line.trigger().unwrap());
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    thread.join().unwrap();
    while script.take_run() {}
    assert_eq!(take(&script, &mut *vcpu), 35);

    // The timer, 10 ms from now on the guest's clock, whose offset is 1,000,000.
    script.put_system(sys::CNTV_CTL_EL0, 1);
    script.put_system(sys::CNTV_CVAL_EL0, 500 + COUNTER_HZ / 100);
    script.set_counter(1_000_500);
    script.push(exception(WFI, 0));
    let pc = script.x(reg::PC);
    let begun = std::time::Instant::now();
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    assert!(begun.elapsed() >= Duration::from_millis(10));
    assert_eq!(script.x(reg::PC), pc + 4);
    // A timer that is due does not wait.
    script.put_system(sys::CNTV_CVAL_EL0, 0);
    script.push(exception(WFI, 0));
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
}

#[test]
fn lines_of_the_frameworks_gic_are_pulses() {
    let script = Script::with_gic();
    let machine = machine(&script, 1).unwrap();
    machine.vm.irq_line(5).unwrap().trigger().unwrap();
    let calls = script.calls();
    assert_eq!(calls[calls.len() - 2..], ["spi 37 true", "spi 37 false"]);
    script.fail("gic_set_spi", HvError(-1));
    assert!(machine.vm.irq_line(5).unwrap().trigger().is_err());
    // Its registers are the framework's: the monitor answers none of them.
    let (mut vcpu, _machine, _) = vcpu(&Script::with_gic(), 1);
    assert!(vcpu.program_counter().is_ok());
}

#[test]
fn a_kick_before_during_and_between_runs_returns_kicked_once() {
    let script = Script::new();
    let (mut vcpu, _machine, kick) = vcpu(&script, 1);
    kick.kick();
    kick.kick();
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    assert_eq!(script.shown().len(), 0);
    let (go, start) = std::sync::mpsc::channel();
    let kicker = thread::spawn(move || {
        for turn in start {
            thread::sleep(Duration::from_micros(turn));
            kick.kick();
        }
    });
    for turn in 0..50 {
        script.push(if turn % 2 == 0 { Run::Stay } else { exception(WFI, 0) });
        script.push(Run::Stay);
        script.push(Run::Stay);
        go.send(turn * 5).unwrap();
        assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);
        while script.take_run() {}
    }
    drop(go);
    kicker.join().unwrap();
}

#[test]
fn a_machine_and_its_vcpu_survive_into_another_one_with_their_clock() {
    let script = Script::new();
    let (mut one, first, _) = vcpu(&script, 1);
    with_interrupts(&script, &mut *one);
    first.vm.irq_line(3).unwrap().trigger().unwrap();
    script.put_x(19, 0x1122_3344_5566_7788);
    script.put_system(sys::TTBR0_EL1, 0x4123_0000);
    // The guest has lived for 4,000 ticks.
    script.set_counter(1_004_000);
    let (machine_state, vcpu_state) = (first.vm.save().unwrap(), one.save().unwrap());

    let other = Script::new();
    other.set_counter(77_000_000);
    let (mut two, second, _) = vcpu(&other, 1);
    second.vm.restore(&machine_state).unwrap();
    two.restore(&vcpu_state).unwrap();
    assert_eq!((other.x(19), other.system(sys::TTBR0_EL1)), (0x1122_3344_5566_7788, 0x4123_0000));
    assert!(other.calls().contains(&"offset 0 76996000".to_owned()));
    assert_eq!(take(&other, &mut *two), 35);

    // The framework's GIC is another one.
    let script = Script::with_gic();
    let (mut three, third, _) = vcpu(&script, 1);
    assert!(third.vm.restore(&machine_state).is_err());
    assert!(three.restore(&vcpu_state).is_err());
    let (state, registers) = (third.vm.save().unwrap(), three.save().unwrap());
    third.vm.restore(&state).unwrap();
    three.restore(&registers).unwrap();
    assert!(second.vm.restore(&state).is_err());
    assert!(two.restore(&registers).is_err());
    // Another number of CPUs.
    assert!(machine(&Script::new(), 2).unwrap().vm.restore(&machine_state).is_err());
}
