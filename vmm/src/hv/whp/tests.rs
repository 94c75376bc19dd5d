//! The backend on a scripted platform: what is set up, how exits are answered, kicks, state.

use std::mem::offset_of;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use windows_sys::Win32::System::Hypervisor as w;

use super::Whp;
use super::api::{CONTEXT_SIZE, Hresult, capability, name};
use super::exit::at;
use super::testing::{Run, Script, canceled, context, machine, mem, memory, msr, port};
use crate::Error;
use crate::hv::x86::testing::Devices;
use crate::hv::{Entry, Exit, Hypervisor, Kick, Plan, Vcpu, X86Entry, X86Mode};

const RIP: u64 = 0x1_0000;
/// An address without RAM, whose page is mapped one to one.
const DEVICE: u64 = 0xd000_0000;
const DENIED: Hresult = Hresult(0x8007_0005_u32.cast_signed());

/// A vCPU in flat protected mode, and its kick.
fn vcpu(script: &Script) -> (Box<dyn Vcpu>, Arc<dyn Kick>) {
    let mut slots = machine(script, 1).unwrap().slots;
    let slot = slots.remove(0);
    let kick = slot.kick();
    script.kick_at_end(Arc::clone(&kick));
    let mut vcpu = slot.bind().unwrap();
    let entry =
        X86Entry { mode: X86Mode::Protected, rip: RIP, rsp: 0x8000, rbx: DEVICE, rsi: 0, gdt: 0x5000 };
    vcpu.set_entry(&Entry::X86(entry)).unwrap();
    (vcpu, kick)
}

/// Runs the exits one after another; demands that the vCPU goes on until the kick at the end.
fn run(exits: impl IntoIterator<Item = Box<super::api::Context>>) -> (Script, Devices) {
    let script = Script::new();
    let (mut vcpu, _) = vcpu(&script);
    for exit in exits {
        script.push(Run::Exit(exit));
    }
    let mut devices = Devices { answers: vec![0x11, 0x22, 0x33, 0x44], ..Devices::default() };
    assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::Kicked);
    (script, devices)
}

#[test]
fn offsets_are_those_of_the_platforms_structures() {
    type Context = w::WHV_RUN_VP_EXIT_CONTEXT;
    let vp = offset_of!(Context, VpContext);
    assert_eq!(at::REASON, offset_of!(Context, ExitReason));
    assert_eq!(at::LENGTH, vp + offset_of!(w::WHV_VP_EXIT_CONTEXT, _bitfield));
    let cs = vp + offset_of!(w::WHV_VP_EXIT_CONTEXT, Cs);
    assert_eq!(at::CS_ATTRIBUTES, cs + offset_of!(w::WHV_X64_SEGMENT_REGISTER, Anonymous));
    assert_eq!(at::RIP, vp + offset_of!(w::WHV_VP_EXIT_CONTEXT, Rip));
    let body = offset_of!(Context, Anonymous);
    assert_eq!(at::BODY, body + offset_of!(w::WHV_MEMORY_ACCESS_CONTEXT, InstructionByteCount));
    assert_eq!(at::BYTES, body + offset_of!(w::WHV_MEMORY_ACCESS_CONTEXT, InstructionBytes));
    assert_eq!(at::INFO, body + offset_of!(w::WHV_MEMORY_ACCESS_CONTEXT, AccessInfo));
    assert_eq!(at::GPA, body + offset_of!(w::WHV_MEMORY_ACCESS_CONTEXT, Gpa));
    assert_eq!(at::BYTES, body + offset_of!(w::WHV_X64_IO_PORT_ACCESS_CONTEXT, InstructionBytes));
    assert_eq!(at::INFO, body + offset_of!(w::WHV_X64_IO_PORT_ACCESS_CONTEXT, AccessInfo));
    assert_eq!(at::PORT, body + offset_of!(w::WHV_X64_IO_PORT_ACCESS_CONTEXT, PortNumber));
    assert_eq!(at::PORT_RAX, body + offset_of!(w::WHV_X64_IO_PORT_ACCESS_CONTEXT, Rax));
    assert_eq!(at::MSR, body + offset_of!(w::WHV_X64_MSR_ACCESS_CONTEXT, MsrNumber));
    assert_eq!(at::MSR_RAX, body + offset_of!(w::WHV_X64_MSR_ACCESS_CONTEXT, Rax));
    assert_eq!(at::MSR_RDX, body + offset_of!(w::WHV_X64_MSR_ACCESS_CONTEXT, Rdx));
    assert_eq!(at::CPUID_DEFAULT, body + offset_of!(w::WHV_X64_CPUID_ACCESS_CONTEXT, DefaultResultRax));
    let feature = offset_of!(w::WHV_X64_UNSUPPORTED_FEATURE_CONTEXT, FeatureParameter);
    assert_eq!(at::FEATURE_PARAMETER, body + feature);
    assert!(size_of::<Context>() <= CONTEXT_SIZE);
}

#[test]
fn names_and_codes_are_those_of_the_platform() {
    use super::api::{map, property};
    let name = |name: w::WHV_REGISTER_NAME| name.cast_unsigned();
    let pairs = [
        (name::RSI, w::WHvX64RegisterRsi),
        (name::R15, w::WHvX64RegisterR15),
        (name::RIP, w::WHvX64RegisterRip),
        (name::ES, w::WHvX64RegisterEs),
        (name::GS, w::WHvX64RegisterGs),
        (name::LDTR, w::WHvX64RegisterLdtr),
        (name::GDTR, w::WHvX64RegisterGdtr),
        (name::CR8, w::WHvX64RegisterCr8),
        (name::DR0, w::WHvX64RegisterDr0),
        (name::DR7, w::WHvX64RegisterDr7),
        (name::XCR0, w::WHvX64RegisterXCr0),
        (name::TSC, w::WHvX64RegisterTsc),
        (name::SYSENTER_CS, w::WHvX64RegisterSysenterCs),
        (name::SFMASK, w::WHvX64RegisterSfmask),
        (name::MTRR_DEF_TYPE, w::WHvX64RegisterMsrMtrrDefType),
        (name::TSC_AUX, w::WHvX64RegisterTscAux),
        (name::PENDING_INTERRUPTION, w::WHvRegisterPendingInterruption),
        (name::PENDING_EVENT, w::WHvRegisterPendingEvent),
        (name::INTERNAL_ACTIVITY_STATE, w::WHvRegisterInternalActivityState),
        (capability::FEATURES, w::WHvCapabilityCodeFeatures),
        (capability::PROCESSOR_FEATURES, w::WHvCapabilityCodeProcessorFeatures),
        (capability::XSAVE_FEATURES, w::WHvCapabilityCodeProcessorXsaveFeatures),
        (capability::PROCESSOR_CLOCK_FREQUENCY, w::WHvCapabilityCodeProcessorClockFrequency),
        (capability::INTERRUPT_CLOCK_FREQUENCY, w::WHvCapabilityCodeInterruptClockFrequency),
        (property::EXTENDED_VM_EXITS, w::WHvPartitionPropertyCodeExtendedVmExits),
        (property::X64_MSR_EXIT_BITMAP, w::WHvPartitionPropertyCodeX64MsrExitBitmap),
        (property::CPUID_RESULT_LIST, w::WHvPartitionPropertyCodeCpuidResultList),
        (property::LOCAL_APIC_EMULATION_MODE, w::WHvPartitionPropertyCodeLocalApicEmulationMode),
        (property::PROCESSOR_COUNT, w::WHvPartitionPropertyCodeProcessorCount),
        (property::XAPIC, w::WHvX64LocalApicEmulationModeXApic),
        (map::TRACK_DIRTY, w::WHvMapGpaRangeFlagTrackDirtyPages),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(ours, name(theirs));
    }
}

#[test]
fn a_partition_is_set_up_in_order_and_taken_down_in_reverse() {
    let script = Script::new();
    drop(machine(&script, 2).unwrap());
    let calls = script.calls();
    let calls: Vec<_> = calls.iter().map(String::as_str).filter(|call| !call.starts_with("capab")).collect();
    assert_eq!(
        calls,
        [
            "create",
            "property 0x1fff 4 bytes",
            "property 0x1005 4 bytes",
            "property 0x1 8 bytes",
            "property 0x5 8 bytes",
            "property 0x1004 192 bytes",
            "setup",
            "map 0x0 0x40000 15",
            "map 0x100000 0x4000 5",
            "create vp 0",
            "create vp 1",
            "set 1",
            "delete vp 0",
            "delete vp 1",
            "delete",
        ]
    );
}

#[test]
fn a_partition_that_cannot_be_made_is_deleted_again() {
    for (call, vps) in [("setup_partition", 0), ("map", 0), ("create_vp", 0), ("set_property", 0)] {
        let script = Script::new();
        script.fail(call, DENIED);
        let error = machine(&script, 2).unwrap_err();
        assert!(matches!(error, Error::Hypervisor { .. }), "{error}");
        let calls = script.calls();
        assert_eq!(calls.last().unwrap(), "delete", "{call}");
        assert_eq!(calls.iter().filter(|call| call.starts_with("delete vp")).count(), vps);
    }
    let script = Script::new();
    script.fail("create_partition", DENIED);
    assert!(machine(&script, 1).is_err());
    assert!(!script.calls().contains(&"delete".to_owned()));
}

#[test]
fn a_platform_that_is_off_or_too_old_is_refused_with_what_to_do() {
    let open = |script: &Script| Whp::with(Arc::new(script.clone())).map(drop).unwrap_err().to_string();
    let script = Script::new();
    for absent in [Some(0), None] {
        script.set_capability(capability::HYPERVISOR_PRESENT, absent);
        assert!(open(&script).contains("dism /online /enable-feature"));
    }
    for code in [
        capability::FEATURES,
        capability::PROCESSOR_FEATURES,
        capability::XSAVE_FEATURES,
        capability::PROCESSOR_CLOCK_FREQUENCY,
        capability::INTERRUPT_CLOCK_FREQUENCY,
    ] {
        let script = Script::new();
        script.set_capability(code, None);
        assert!(open(&script).contains("1903"), "{code:#x}");
    }
    let script = Script::new();
    script.set_capability(capability::FEATURES, Some(!capability::LOCAL_APIC_EMULATION));
    assert!(open(&script).contains("local APICs"));
    let script = Script::new();
    script.set_capability(capability::PROCESSOR_CLOCK_FREQUENCY, Some(0));
    assert!(open(&script).contains("clocks"));
}

#[test]
fn what_is_outside_the_plan_is_refused() {
    let script = Script::new();
    let whp = Whp::with(Arc::new(script.clone())).unwrap();
    let plan = |cpus, gsis| Plan::new(mem().0, cpus, gsis);
    for plan in [plan(0, 24), plan(9, 24), plan(1, 25)] {
        assert!(matches!(whp.create(&plan), Err(Error::Config(_))));
    }
    let machine = machine(&script, 1).unwrap();
    assert!(machine.vm.irq_line(24).is_err());
    assert!(machine.vm.take_dirty(1).is_none(), "the ROM has no log");
    assert!(machine.vm.take_dirty(2).is_none());
}

#[test]
fn the_first_registers_are_those_of_the_entry() {
    let script = Script::new();
    let (mut vcpu, _) = vcpu(&script);
    assert_eq!(vcpu.program_counter().unwrap(), RIP);
    assert_eq!(script.register(name::RBX), u128::from(DEVICE));
    assert_eq!(script.register(name::CR0), 0x11);
    assert_eq!(script.register(name::CS) >> 96, 0xc09b_0010);
    assert_eq!(script.register(name::TR) >> 96, 0x008b_0020);
    assert_eq!(script.register(name::GDTR), 0x5000 << 64 | 0x27 << 48);

    let mode = X86Mode::Long { page_table: 0x9000 };
    let entry = X86Entry { mode, rip: 1, rsp: 2, rbx: 3, rsi: 4, gdt: 5 };
    vcpu.set_entry(&Entry::X86(entry)).unwrap();
    assert_eq!(script.register(name::CS) >> 96, 0xa09b_0010);
    assert_eq!(script.register(name::CR3), 0x9000);
    assert_eq!(script.register(name::EFER), 0x500);
    assert_eq!(script.register(name::CR0), 0x8000_0011);
    assert_eq!((script.register(name::RSP), script.register(name::RSI)), (2, 4));
}

#[test]
fn an_access_to_memory_is_carried_out_and_rip_advanced() {
    // mov [ebx+8], eax; mov eax, [ebx]
    let (script, devices) =
        run([memory(RIP, DEVICE + 8, 1, &[0x89, 0x43, 0x08]), memory(RIP + 3, DEVICE, 0, &[0x8b, 0x03])]);
    assert_eq!(devices.writes, [(DEVICE + 8, vec![0; 4])]);
    assert_eq!(devices.reads, [(DEVICE, 4)]);
    assert_eq!(script.register(name::RAX), 0x4433_2211);
    assert_eq!(script.register(name::RIP), u128::from(RIP + 5));
}

#[test]
fn bytes_that_the_platform_does_not_show_are_fetched() {
    let script = Script::new();
    let (mem, rom) = mem();
    mem.write_slice(&[0x89, 0x03], GuestAddress(RIP)).unwrap();
    let plan = Plan { read_only: vec![rom], ..Plan::new(mem, 1, 24) };
    let machine = Whp::with(Arc::new(script.clone())).unwrap().create(&plan).unwrap();
    let slot = machine.slots.into_iter().next().unwrap();
    script.kick_at_end(slot.kick());
    let mut vcpu = slot.bind().unwrap();
    let entry = X86Entry { mode: X86Mode::Protected, rip: RIP, rsp: 0, rbx: rom.0 + 4, rsi: 0, gdt: 0x5000 };
    vcpu.set_entry(&Entry::X86(entry)).unwrap();
    script.push(Run::Exit(memory(RIP, rom.0 + 4, 1, &[])));
    let mut devices = Devices::default();
    assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::Kicked);
    // A store to memory that the guest may only read goes to the monitor.
    assert_eq!(devices.writes, [(rom.0 + 4, vec![0; 4])]);
}

#[test]
fn ports_of_each_width_are_answered_from_the_exit_alone() {
    const WRITE: u32 = 1;
    let size = |bytes: u32| bytes << 1;
    let (script, devices) = run([
        port(RIP, 0x600, WRITE | size(1), 0x1_0000_0005),
        port(RIP + 1, 0x64, size(1), 0xffff_ffff_ffff_ffff),
    ]);
    assert_eq!(devices.outs, [(0x600, vec![5])]);
    assert_eq!(devices.ins, [(0x64, 1)]);
    assert_eq!(script.register(name::RAX), 0xffff_ffff_ffff_ff11);
    assert_eq!(script.register(name::RIP), u128::from(RIP + 2));
    // Four bytes clear the upper half.
    let (script, _) = run([port(RIP, 0x64, size(4), u64::MAX)]);
    assert_eq!(script.register(name::RAX), 0x4433_2211);
}

#[test]
fn the_masks_of_the_8259s_hold_and_reach_no_device() {
    let (script, devices) = run([port(RIP, 0x21, 1 | 1 << 1, 0xfb), port(RIP + 1, 0x21, 1 << 1, 0)]);
    assert_eq!((devices.ins.len(), devices.outs.len()), (0, 0));
    assert_eq!(script.register(name::RAX), 0xfb);
}

#[test]
fn msrs_of_the_enlightenments_are_answered_and_others_raise_gp() {
    let (script, _) = run([msr(RIP, 0x4000_0022, false, 0)]);
    let (rax, rdx) = (script.register(name::RAX), script.register(name::RDX));
    assert_eq!(rdx << 32 | rax, super::testing::TSC_HZ.into());
    assert_eq!(script.register(name::RIP), u128::from(RIP + 2));
    assert_eq!(script.register(name::PENDING_INTERRUPTION), 0);

    for exit in [msr(RIP, 0xce, false, 0), msr(RIP, 0x4000_0022, true, 5)] {
        let (script, _) = run([exit]);
        // Pending, exception, error code; vector 13.
        assert_eq!(script.register(name::PENDING_INTERRUPTION), 0xd_0017);
        assert_eq!(script.register(name::RIP), u128::from(RIP));
    }
}

#[test]
fn an_edge_becomes_a_message_to_the_local_apics_and_an_end_lets_the_next_one_through() {
    let script = Script::new();
    let machine = machine(&script, 1).unwrap();
    let line = machine.vm.irq_line(5).unwrap();
    line.trigger().unwrap();
    assert_eq!(script.interrupts(), [[0; 16]; 0], "the pin is masked");

    let slot = machine.slots.into_iter().next().unwrap();
    script.kick_at_end(slot.kick());
    let mut vcpu = slot.bind().unwrap();
    let set = |index: u32, value: u32| {
        // mov dword [0xfec00000], index; mov dword [0xfec00010], value
        for (addr, value) in [(0xfec0_0000_u32, index), (0xfec0_0010, value)] {
            let code = [&[0xc7, 0x05][..], &addr.to_le_bytes(), &value.to_le_bytes()].concat();
            script.push(Run::Exit(memory(RIP, addr.into(), 1, &code)));
        }
    };
    let entry = X86Entry { mode: X86Mode::Protected, rip: RIP, rsp: 0, rbx: 0, rsi: 0, gdt: 0x5000 };
    vcpu.set_entry(&Entry::X86(entry)).unwrap();
    set(0x1b, 0x0100_0000);
    set(0x1a, 0x8041); // level-triggered, vector 0x41, to APIC 1
    let mut devices = Devices::default();
    assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::Kicked);
    assert_eq!(devices.writes, [], "the I/O APIC is the backend's");
    let level = [0, 0x10, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x41, 0, 0, 0];
    assert_eq!(script.interrupts(), [level]);
    line.trigger().unwrap();
    assert_eq!(script.interrupts().len(), 1);
    let mut end = context(9, RIP, 0);
    super::testing::put(&mut end, at::BODY, &[0x41]);
    script.push(Run::Exit(end));
    assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::Kicked);
    assert_eq!(script.interrupts(), [level, level]);
    script.fail("request_interrupt", DENIED);
    // Opened as an edge, the pin lets the edge through that waited.
    set(0x1a, 0x41);
    line.trigger().unwrap();
    assert!(vcpu.run(&mut devices).is_err(), "a host fault is told");
    assert!(line.trigger().is_err());
}

#[test]
fn exits_that_no_guest_goes_on_from_are_faults_with_a_reason() {
    let cases: Vec<(_, &str)> = vec![
        (context(5, RIP, 0), "not valid"),
        (context(6, RIP, 0), "lacks"),
        (context(8, RIP, 0), "halted"),
        (context(0, RIP, 0), "exit reason 0x0"),
        (context(0xdead, RIP, 0), "0xdead"),
        (memory(RIP, DEVICE, 2, &[]), "executes at 0xd0000000"),
        // movups [ebx], xmm0
        (memory(RIP, DEVICE, 1, &[0x0f, 0x11, 0x03]), "no access to a device by"),
    ];
    for (exit, expected) in cases {
        let script = Script::new();
        let (mut vcpu, _) = vcpu(&script);
        script.push(Run::Exit(exit));
        match vcpu.run(&mut Devices::default()).unwrap() {
            Exit::Fault(fault) => {
                assert!(fault.why.contains(expected), "{}", fault.why);
                assert_eq!(fault.pc, Some(RIP));
            }
            other => panic!("{other:?}"),
        }
    }
    let script = Script::new();
    let (mut vcpu, _) = vcpu(&script);
    script.push(Run::Exit(context(4, RIP, 0)));
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Reset);
    script.push(Run::Fail(DENIED));
    let error = vcpu.run(&mut Devices::default()).unwrap_err();
    assert!(matches!(error, Error::Hypervisor { doing: "running a vCPU", .. }));
}

#[test]
fn a_kick_before_during_and_between_runs_returns_kicked_once() {
    let script = Script::new();
    let (mut vcpu, kick) = vcpu(&script);
    let mut devices = Devices::default();
    kick.kick();
    kick.kick();
    assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::Kicked);
    assert!(!script.calls().iter().any(|call| call.starts_with("cancel")));

    let (go, start) = std::sync::mpsc::channel();
    let kicker = thread::spawn(move || {
        for turn in start {
            thread::sleep(Duration::from_micros(turn));
            kick.kick();
        }
    });
    for turn in 0..50 {
        // A cancellation that nobody asked for is left from before, and does not end the run.
        script.push(Run::Exit(canceled()));
        script.push(Run::Stay);
        go.send(turn * 5).unwrap();
        assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::Kicked);
        // What was not run yet is taken away again.
        while script.take_run() {}
    }
    drop(go);
    kicker.join().unwrap();
}

#[test]
fn a_kick_of_a_dropped_vcpu_reaches_no_processor() {
    let script = Script::new();
    let (vcpu, kick) = vcpu(&script);
    drop(vcpu);
    kick.kick();
    assert!(!script.calls().iter().any(|call| call.starts_with("cancel")));
}

#[test]
fn registers_apic_and_extended_state_survive_into_another_machine() {
    let first = Script::new();
    let (mut one, _) = vcpu(&first);
    first.put_register(name::RBX, 0x1122_3344_5566_7788);
    first.put_register(name::PENDING_EVENT, 7 << 64 | 3);
    first.push(Run::Exit(msr(RIP, 0x4000_0000, true, 0x8100)));
    assert_eq!(one.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    let state = one.save().unwrap();

    let second = Script::new();
    let (mut other, _) = vcpu(&second);
    other.restore(&state).unwrap();
    assert_eq!(second.register(name::RBX), 0x1122_3344_5566_7788);
    assert_eq!(second.register(name::PENDING_EVENT), 7 << 64 | 3);
    let calls = second.calls();
    let place = |what: &str| calls.iter().rposition(|call| call == what).unwrap();
    assert!(place("set 0") < place("set Xsave 0") && place("set Xsave 0") < place("set Apic 0"));
    second.push(Run::Exit(msr(RIP, 0x4000_0000, false, 0)));
    assert_eq!(other.run(&mut Devices::default()).unwrap(), Exit::Kicked);
    assert_eq!(second.register(name::RAX), 0x8100);
}

#[test]
fn a_machine_is_not_restored_on_a_lesser_processor_or_another_clock() {
    let saved = machine(&Script::new(), 1).unwrap().vm.save().unwrap();
    let restore = |script: &Script| machine(script, 1).unwrap().vm.restore(&saved);
    let script = Script::new();
    restore(&script).unwrap();
    script.set_capability(capability::PROCESSOR_FEATURES, Some(0x1ff));
    restore(&script).unwrap();
    script.set_capability(capability::PROCESSOR_FEATURES, Some(0xfe));
    assert!(restore(&script).unwrap_err().to_string().contains("saved state"));
    let script = Script::new();
    script.set_capability(capability::PROCESSOR_CLOCK_FREQUENCY, Some(1));
    assert!(restore(&script).is_err());
}

#[test]
fn written_pages_are_told_where_they_are_tracked() {
    let script = Script::new();
    let tracking = machine(&script, 1).unwrap();
    script.put_dirty(vec![0b101]);
    assert_eq!(tracking.vm.take_dirty(0).unwrap().unwrap(), [0b101]);
    assert!(script.calls().contains(&"dirty 0x0 0x40000".to_owned()));
    script.set_capability(capability::FEATURES, Some(capability::LOCAL_APIC_EMULATION));
    // What was not mapped for it can have no log later.
    assert!(tracking.vm.track_dirty().unwrap().is_ok());
    let machine = machine(&script, 1).unwrap();
    assert!(machine.vm.take_dirty(0).is_none() && machine.vm.track_dirty().is_none());
}
