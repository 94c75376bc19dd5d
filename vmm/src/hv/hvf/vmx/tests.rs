//! The backend on a scripted framework: what is set up, how exits are answered, interrupts, kicks, state.

mod interrupts;

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::Vmx;
use super::api::{BUSY, DENIED, HvError, capability, reg};
use super::exit::{ControlAccess, Port};
use super::fields::{self, entry, primary, reason};
use super::testing::{RIP, Run, Script, TSC_HZ, machine};
use crate::Error;
use crate::hv::x86::testing::Devices;
use crate::hv::x86::{ioapic, lapic};
use crate::hv::{Entry, Exit, Machine, Vcpu, X86Entry, X86Mode};

/// An address without RAM.
const DEVICE: u64 = 0xd000_0000;
/// `mov [rbx], eax` and `mov eax, [rbx]`.
const STORE: [u8; 2] = [0x89, 0x03];
const LOAD: [u8; 2] = [0x8b, 0x03];
const GP: u64 = 13 | 3 << 8 | 1 << 11 | 1 << 31;
const UD: u64 = 6 | 3 << 8 | 1 << 31;

struct Rig {
    script: Script,
    machine: Machine,
    vcpu: Box<dyn Vcpu>,
    mem: servin_devices::mem::Mem,
    devices: Devices,
    /// Entries before the last scripted exit.
    entered: usize,
}

impl Rig {
    /// A vCPU in flat protected mode without paging.
    fn new() -> Self {
        Self::of(1, X86Mode::Protected)
    }

    fn of(cpus: u8, mode: X86Mode) -> Self {
        let script = Script::new();
        let (mut machine, mem) = machine(&script, cpus).unwrap();
        let slot = machine.slots.remove(0);
        script.kick_at_end(slot.kick());
        let mut vcpu = slot.bind().unwrap();
        let entry = X86Entry { mode, rip: RIP, rsp: 0x8000, rbx: DEVICE, rsi: 0x77, gdt: 0x5000 };
        vcpu.set_entry(&Entry::X86(entry)).unwrap();
        let devices = Devices { answers: vec![0x11, 0x22, 0x33, 0x44], ..Devices::default() };
        Self { script, machine, vcpu, mem, devices, entered: 0 }
    }

    fn run(&mut self) -> Exit {
        self.vcpu.run(&mut self.devices).unwrap()
    }

    /// Runs what is scripted; demands that the vCPU goes on until the kick at the end.
    fn through(&mut self) {
        assert_eq!(self.run(), Exit::Kicked);
        assert_eq!(self.script.left(), 0);
    }

    /// One exit of an instruction of two bytes.
    fn exit(&mut self, reason: u32, qualification: u64, registers: &[(u32, u64)]) {
        let fields = [(fields::QUALIFICATION, qualification), (fields::INSTRUCTION_LENGTH, 2)];
        self.entered = self.script.entries().len();
        self.script.exit(reason, &fields, registers);
        self.through();
    }

    /// An access to `addr` by an instruction with RBX as its address.
    fn touch(&mut self, code: &[u8], addr: u64, rax: u64) {
        self.mem.write_slice(code, GuestAddress(RIP)).unwrap();
        let fields = [(fields::QUALIFICATION, 3), (fields::PHYSICAL_ADDRESS, addr)];
        let registers = [(reg::RIP, RIP), (reg::RBX, addr), (reg::RAX, rax)];
        self.script.exit(reason::EPT_VIOLATION, &fields, &registers);
    }

    fn rip(&self) -> u64 {
        self.script.register(reg::RIP)
    }

    /// What the entries since the last scripted exit delivered, or what they say without delivering it. A kick that comes
    /// twice makes one more entry.
    fn delivered(&self) -> u64 {
        let entries = self.script.entries();
        let since = entries.get(self.entered..).unwrap();
        let valid = since.iter().map(|(event, ..)| *event).find(|event| event >> 31 == 1);
        valid.unwrap_or_else(|| entries.last().unwrap().0)
    }

    /// The local APIC is enabled, and pin 5 raises vector 0x35 at the first vCPU.
    fn open_line(&mut self) {
        for (addr, value) in [(lapic::BASE + 0xf0, 0x1ff), (ioapic::BASE, 0x1a), (ioapic::BASE + 0x10, 0x35)]
        {
            self.touch(&STORE, addr, value);
        }
        self.through();
    }
}

#[test]
fn a_machine_is_set_up_in_order_and_taken_down_in_reverse() {
    let rig = Rig::new();
    let script = rig.script.clone();
    drop(rig);
    let calls = script.calls();
    let calls: Vec<_> = calls.iter().map(String::as_str).filter(|call| !call.starts_with("native")).collect();
    assert_eq!(
        calls,
        ["create", "map 0x0 0x40000 7", "map 0x100000 0x4000 5", "create vcpu", "destroy vcpu 0", "destroy"]
    );
}

#[test]
fn what_the_framework_demands_is_set_and_what_it_lacks_is_named() {
    let rig = Rig::new();
    let script = &rig.script;
    assert_eq!(script.field(0, fields::PIN_CONTROLS) & 0x3f, 0x16 | 0x29, "demanded, and wanted");
    let controls = script.field(0, fields::CONTROLS) as u32;
    assert_eq!(controls & (primary::INTERRUPT_WINDOW | primary::NMI_WINDOW), 0);
    assert_ne!(controls & primary::HLT, 0);
    for (field, bits, name) in [
        (capability::PIN, 1 << 5, "pin-based"),
        (capability::PROCESSOR, primary::HLT, "processor-based"),
        (capability::ENTRY, entry::LONG, "entry"),
    ] {
        let script = Script::new();
        script.set_capability(field, Some(u64::from(!bits) << 32));
        let error = Vmx::with(Arc::new(script.clone())).unwrap_err().to_string();
        assert!(error.contains(&format!("lacks bits {bits:#x} of its {name}")), "{error}");
        script.set_capability(field, None);
        let error = Vmx::with(Arc::new(script)).unwrap_err().to_string();
        assert!(error.contains("does not tell"), "{error}");
    }
}

#[test]
fn a_mac_that_cannot_virtualize_or_denies_it_says_so() {
    for (call, error, says) in [
        ("max_vcpus", HvError(-1), "kern.hv_support"),
        ("tsc_hz", HvError(-1), "machdep.tsc.frequency"),
        ("vm_create", DENIED, "com.apple.security.hypervisor"),
        ("vm_create", BUSY, "one for each process"),
    ] {
        let script = Script::new();
        script.fail(call, error);
        let error = machine(&script, 1).map(drop).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    // What was begun is taken down.
    let script = Script::new();
    script.fail("map", HvError(-1));
    assert!(machine(&script, 1).is_err());
    assert_eq!(script.calls().last().unwrap(), "destroy");
}

#[test]
fn a_guest_begins_in_the_mode_that_it_is_promised() {
    let rig = Rig::new();
    let field = |field| rig.script.field(0, field);
    assert_eq!((rig.rip(), rig.script.register(reg::RBX), rig.script.register(6)), (RIP, DEVICE, 0x77));
    assert_eq!(field(fields::RIGHTS + 2 * fields::CS), 0xc09b);
    assert_eq!(field(fields::CR0) & 0x8000_0031, 0x31);
    assert_eq!((field(fields::CR4), field(fields::EFER)), (1 << 13, 0));

    let rig = Rig::of(1, X86Mode::Long { page_table: 0x3000 });
    let field = |field| rig.script.field(0, field);
    assert_eq!((field(fields::CR3), field(fields::EFER)), (0x3000, 0x500));
    assert_eq!(field(fields::RIGHTS + 2 * fields::CS), 0xa09b);
    assert_eq!(field(fields::ENTRY_CONTROLS) as u32 & entry::LONG, entry::LONG);
    assert_eq!((field(fields::CR0) & 0x8000_0001, field(fields::CR4_SHADOW)), (0x8000_0001, 0x20));
}

#[test]
fn an_access_to_a_device_is_carried_out_and_one_to_ram_runs_again() {
    let mut rig = Rig::new();
    rig.touch(&STORE, DEVICE, 0x1234_5678);
    rig.through();
    rig.touch(&LOAD, DEVICE, 0);
    rig.through();
    assert_eq!(rig.rip(), RIP + 2);
    // RAM that was not there yet.
    rig.script.exit(
        reason::EPT_VIOLATION,
        &[(fields::QUALIFICATION, 2), (fields::PHYSICAL_ADDRESS, 0x100)],
        &[(reg::RIP, RIP)],
    );
    rig.through();
    assert_eq!(rig.devices.writes, [(DEVICE, vec![0x78, 0x56, 0x34, 0x12])]);
    assert_eq!(rig.devices.reads, [(DEVICE, 4)]);
    assert_eq!(rig.script.register(reg::RAX), 0x4433_2211);
    assert_eq!(rig.rip(), RIP, "the last one was not carried out");
}

#[test]
fn a_write_to_read_only_memory_reaches_the_monitor() {
    let mut rig = Rig::new();
    rig.touch(&STORE, 0x10_0000, 7);
    rig.through();
    assert_eq!(rig.devices.writes, [(0x10_0000, vec![7, 0, 0, 0])]);
    assert_eq!(rig.mem.read_obj::<u32>(GuestAddress(0x10_0000)).unwrap(), 0);
    assert_eq!(rig.rip(), RIP + 2);
}

#[test]
fn what_cannot_go_on_ends_with_the_reason() {
    let fault = |reason, fields: &[(u32, u64)]| {
        let mut rig = Rig::new();
        rig.script.exit(reason, fields, &[(reg::RIP, RIP)]);
        match rig.run() {
            Exit::Fault(fault) => fault.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let fetch = [(fields::QUALIFICATION, 4), (fields::PHYSICAL_ADDRESS, DEVICE)];
    assert!(fault(reason::EPT_VIOLATION, &fetch).contains("executes at 0xd0000000"));
    assert!(fault(reason::FAILED | 33, &[]).contains("refused the registers (reason 0x21)"));
    assert!(fault(49, &[]).contains("exit reason 49 at 0x10000"));
    assert!(fault(0, &[(fields::EXIT_EVENT, 3 << 8 | 14)]).contains("not asked for"));
    let mut rig = Rig::new();
    rig.script.exit(reason::TRIPLE_FAULT, &[], &[]);
    assert_eq!(rig.run(), Exit::Reset);
    rig.script.push(Run::Fail(HvError(-3)));
    assert!(matches!(rig.vcpu.run(&mut rig.devices), Err(Error::Hypervisor { .. })));
}

#[test]
fn qualifications_are_read_as_the_manual_has_them() {
    let port = Port::from_qualification(0x60 << 16 | 1 << 3 | 1);
    assert_eq!(port, Port { port: 0x60, size: 2, input: true, string: false });
    assert!(Port::from_qualification(1 << 4).string);
    assert_eq!(ControlAccess::from_qualification(0x704), ControlAccess::Write { register: 4, from: 7 });
    assert_eq!(ControlAccess::from_qualification(0x918), ControlAccess::Read { register: 8, to: 9 });
    assert_eq!(ControlAccess::from_qualification(0x20), ControlAccess::ClearTaskSwitched);
    assert_eq!(ControlAccess::from_qualification(0xb_0030), ControlAccess::LoadStatus(0xb));
}

#[test]
fn ports_are_read_into_the_part_of_rax_that_the_width_names() {
    for (size, rax) in [(0, 0xffff_ffff_ffff_ff11), (1, 0xffff_ffff_ffff_2211), (3, 0x4433_2211)] {
        let mut rig = Rig::new();
        rig.exit(reason::PORT, 0x50 << 16 | 1 << 3 | size, &[(reg::RAX, u64::MAX)]);
        assert_eq!((rig.script.register(reg::RAX), rig.rip()), (rax, RIP + 2));
        assert_eq!(rig.devices.ins, [(0x50, size as usize + 1)]);
    }
    let mut rig = Rig::new();
    rig.exit(reason::PORT, 0x54 << 16 | 1, &[(reg::RAX, 0xaa_bbcc)]);
    assert_eq!(rig.devices.outs, [(0x54, vec![0xcc, 0xbb])]);
    // The masks of the 8259s are here, and reach no device.
    rig.exit(reason::PORT, 0x21 << 16, &[(reg::RAX, 0xfb)]);
    rig.exit(reason::PORT, 0x21 << 16 | 1 << 3, &[]);
    assert_eq!((rig.script.register(reg::RAX), rig.devices.outs.len()), (0xfb, 1));
}

#[test]
fn cpuid_offers_what_is_here_and_names_the_vcpu() {
    let mut rig = Rig::of(2, X86Mode::Protected);
    let mut ask = |leaf: u64, subleaf: u64| {
        rig.exit(reason::CPUID, 0, &[(reg::RAX, leaf), (reg::RCX, subleaf)]);
        [reg::RAX, reg::RBX, reg::RCX, reg::RDX].map(|name| rig.script.register(name) as u32)
    };
    let [_, b, c, d] = ask(1, 0);
    assert_eq!(b >> 16, 2);
    assert_eq!((c >> 31, c >> 24 & 1, c >> 21 & 1, c >> 5 & 1, c >> 27 & 1), (1, 0, 0, 0, 0));
    assert_eq!(d >> 28 & 1, 1, "there are two");
    assert_eq!(ask(7, 0)[3] >> 26, 0, "nothing that needs an MSR");
    // Protection keys and supervisor state are the host's; the size is that of what is offered and enabled.
    assert_eq!(ask(0xd, 0), [0xe7, 576, 0x680 + 0x400, 0]);
    assert_eq!(ask(0xd, 1), [5, 0, 0, 0]);
    assert_eq!(ask(0xd, 9), [0; 4]);
    assert_eq!(ask(0xb, 1), [1, 2, 0x201, 0]);
    assert_eq!(ask(0x4000_0000, 0)[1..], [0x7263_694d, 0x666f_736f, 0x7648_2074]);
}

#[test]
fn msrs_are_answered_or_raise_a_protection_fault() {
    let mut rig = Rig::new();
    let mut read = |msr: u64| {
        rig.exit(reason::RDMSR, 0, &[(reg::RCX, msr), (reg::RAX, 0), (reg::RDX, 0)]);
        rig.script.register(reg::RDX) << 32 | rig.script.register(reg::RAX)
    };
    assert_eq!(read(0x1b), 0xfee0_0900);
    assert_eq!(read(0x4000_0022), TSC_HZ);
    assert_eq!(read(0x2ff), 0x806);
    assert_eq!(rig.rip(), RIP + 6);
    let mut write = |msr: u64, value: u64| {
        let registers = [(reg::RCX, msr), (reg::RAX, value & 0xffff_ffff), (reg::RDX, value >> 32)];
        rig.exit(reason::WRMSR, 0, &registers);
        rig.delivered()
    };
    for (msr, value) in [(0x1b, 0xfee0_0900), (0x277, 0x0007_0406_0007_0501), (0xc000_0080, 0x900), (0x8b, 0)]
    {
        assert_eq!(write(msr, value) >> 31, 0, "{msr:#x}");
    }
    for (msr, value) in
        [(0x1b, 0xfed0_0900), (0x277, 2), (0xc000_0080, 2), (0x10, 0), (0x6e0, 1), (0x12345, 0)]
    {
        assert_eq!(write(msr, value), GP, "{msr:#x}");
    }
    assert_eq!(rig.script.field(0, fields::EFER), 0x900);
    // In real mode no exception has an error code.
    rig.script.put_field(fields::CR0, 0x30);
    rig.exit(reason::RDMSR, 0, &[(reg::RCX, 0x12345)]);
    assert_eq!(rig.delivered(), GP & !(1 << 11));
}

#[test]
fn long_mode_is_entered_and_left_with_paging() {
    let mut rig = Rig::new();
    rig.script.put_field(fields::EFER, 0x100);
    rig.script.put_field(fields::CR4, 1 << 13 | 1 << 5);
    rig.exit(reason::CR, 0, &[(reg::RAX, 0x8000_0011)]);
    let field = |rig: &Rig, field| rig.script.field(0, field);
    assert_eq!((field(&rig, fields::EFER), rig.rip()), (0x500, RIP + 2));
    assert_ne!(field(&rig, fields::ENTRY_CONTROLS) as u32 & entry::LONG, 0);
    assert_eq!(field(&rig, fields::CR0) & 0x8000_0031, 0x8000_0031);
    assert_eq!(field(&rig, fields::CR0_SHADOW), 0x8000_0011, "the guest reads what it wrote");
    rig.exit(reason::CR, 0, &[(reg::RAX, 0x11)]);
    assert_eq!(field(&rig, fields::EFER), 0x100);
    assert_eq!(field(&rig, fields::ENTRY_CONTROLS) as u32 & entry::LONG, 0);
    // Paging without protection, and long mode without PAE.
    rig.exit(reason::CR, 0, &[(reg::RAX, 0x8000_0010)]);
    assert_eq!(rig.delivered(), GP);
    rig.script.put_field(fields::CR4, 1 << 13);
    rig.exit(reason::CR, 0, &[(reg::RAX, 0x8000_0011)]);
    assert_eq!(rig.delivered(), GP);
    // VMX is not offered.
    rig.exit(reason::CR, 4, &[(reg::RAX, 1 << 13)]);
    assert_eq!(rig.delivered(), GP);
    rig.exit(reason::CR, 4, &[(reg::RAX, 0x620)]);
    assert_eq!((field(&rig, fields::CR4), field(&rig, fields::CR4_SHADOW)), (0x2620, 0x620));
}

#[test]
fn instructions_that_are_not_offered_are_undefined_and_xcr0_is_checked() {
    let mut rig = Rig::new();
    for reason in [reason::VMCALL, reason::VMXON, reason::MONITOR, reason::MWAIT, reason::GETSEC] {
        rig.exit(reason, 0, &[]);
        assert_eq!(rig.delivered(), UD, "{reason}");
    }
    for (value, valid) in
        [(7, true), (0xe7, true), (1, true), (5, false), (0x27, false), (0x207, false), (6, false)]
    {
        rig.exit(reason::XSETBV, 0, &[(reg::RCX, 0), (reg::RAX, value), (reg::RDX, 0)]);
        assert_eq!(rig.delivered() >> 31 == 0, valid, "{value:#x}");
    }
    assert_eq!(rig.script.register(reg::XCR0), 1);
    for reason in [reason::INVD, reason::WBINVD, reason::PAUSE] {
        let before = rig.rip();
        rig.exit(reason, 0, &[]);
        assert_eq!(rig.rip(), before + 2);
    }
}

#[test]
fn state_survives_into_another_machine_and_one_that_does_not_fit_is_refused() {
    let mut rig = Rig::of(1, X86Mode::Long { page_table: 0x3000 });
    rig.script.put_clocks(5000, 1_000_000);
    rig.script.put_register(reg::RBX, 0x1122);
    let cut = 14 | 3 << 8 | 1 << 11 | 1 << 31;
    rig.script.exit(reason::EXTERNAL_INTERRUPT, &[(fields::VECTORING_EVENT, cut)], &[]);
    rig.script.push(Run::Early);
    rig.through();
    let (machine_state, state) = (rig.machine.vm.save().unwrap(), rig.vcpu.save().unwrap());

    let script = Script::new();
    script.put_clocks(7, 400);
    let (mut other, _) = machine(&script, 1).unwrap();
    other.vm.restore(&machine_state).unwrap();
    let slot = other.slots.remove(0);
    script.kick_at_end(slot.kick());
    let mut vcpu = slot.bind().unwrap();
    vcpu.restore(&state).unwrap();
    assert_eq!(script.register(reg::RBX), 0x1122);
    assert_eq!((script.field(0, fields::EFER), script.field(0, fields::CR3)), (0x500, 0x3000));
    assert_ne!(script.field(0, fields::ENTRY_CONTROLS) as u32 & entry::LONG, 0);
    assert_eq!(script.field(0, fields::TSC_OFFSET), 1_000_000 - 400, "the counter goes on");
    assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Kicked);

    // Another backend's, and one of a processor with more.
    let whp = crate::hv::whp::testing::Script::new();
    let theirs = crate::hv::whp::testing::machine(&whp, 1).unwrap();
    assert!(other.vm.restore(&theirs.vm.save().unwrap()).is_err());
    let poor = Script::new();
    poor.set_capability(capability::SECONDARY, Some(0));
    let (poor, _) = machine(&poor, 1).unwrap();
    let error = poor.vm.restore(&machine_state).unwrap_err();
    assert!(format!("{error:?}").contains("lacks features"), "{error:?}");
}
