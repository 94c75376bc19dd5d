//! Accesses to devices, instruction by instruction. RAM ends at 256 KiB: [`DEVICE`] is mapped and lies behind it.

use super::super::testing::{Devices, FakeCpu, entry};
use super::super::{AssistError, Event, Outcome, access, cr0, exception};
use super::{DATA, RAX, RBX, RCX, RDI, RDX, RSI};

/// Linear and guest-physical address of a page of registers.
const DEVICE: u64 = 0xd000_0000;

fn kernel() -> FakeCpu {
    let mut cpu = FakeCpu::mapped();
    cpu.map(DEVICE, DEVICE | entry::PRESENT | entry::WRITABLE);
    cpu.map(DEVICE + 0x1000, (DEVICE + 0x1000) | entry::PRESENT | entry::WRITABLE);
    cpu.set(RBX, DEVICE);
    cpu
}

/// Carries the instruction out, and demands that RIP is behind it.
#[track_caller]
fn done(cpu: &mut FakeCpu, devices: &mut Devices, code: &[u8]) {
    let rip = cpu.regs.rip;
    assert_eq!(access(cpu, devices, code).unwrap(), Outcome::Done);
    assert_eq!(cpu.regs.rip, rip + code.len() as u64);
    assert_eq!(cpu.injected, []);
}

fn answering(answers: &[u8]) -> Devices {
    Devices { answers: answers.to_vec(), ..Devices::default() }
}

#[test]
fn loads_of_each_width_take_the_bytes_that_the_device_gave() {
    // mov al/ax/eax/rax, [rbx+8]: the upper half is cleared by 4 bytes only.
    for (code, width, expected) in [
        (&[0x8a, 0x43, 0x08][..], 1, 0xffff_ffff_ffff_ff11_u64),
        (&[0x66, 0x8b, 0x43, 0x08], 2, 0xffff_ffff_ffff_2211),
        (&[0x8b, 0x43, 0x08], 4, 0x4433_2211),
        (&[0x48, 0x8b, 0x43, 0x08], 8, 0x8877_6655_4433_2211),
    ] {
        let mut cpu = kernel();
        cpu.set(RAX, u64::MAX);
        let mut devices = answering(&[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
        done(&mut cpu, &mut devices, code);
        assert_eq!(devices.reads, [(DEVICE + 8, width)]);
        assert_eq!(cpu.get(RAX), expected);
    }
}

#[test]
fn stores_of_registers_and_immediates_reach_the_device() {
    for (code, expected) in [
        (&[0x88, 0x03][..], &[0x88][..]),
        (&[0x88, 0x23], &[0x77]), // mov [rbx], ah
        (&[0x66, 0x89, 0x03], &[0x88, 0x77]),
        (&[0x89, 0x03], &[0x88, 0x77, 0x66, 0x55]),
        (&[0x48, 0x89, 0x03], &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]),
        (&[0xc6, 0x03, 0x5a], &[0x5a]),
        (&[0xc7, 0x03, 0x74, 0x72, 0x69, 0x76], b"triv"),
        (&[0x48, 0xc7, 0x03, 0xfe, 0xff, 0xff, 0xff], &[0xfe, 255, 255, 255, 255, 255, 255, 255]),
        (&[0x0f, 0xc3, 0x03], &[0x88, 0x77, 0x66, 0x55]), // movnti
    ] {
        let mut cpu = kernel();
        cpu.set(RAX, 0x1122_3344_5566_7788);
        let mut devices = Devices::default();
        done(&mut cpu, &mut devices, code);
        assert_eq!(devices.writes, [(DEVICE, expected.to_vec())]);
    }
}

#[test]
fn loads_that_widen_extend_with_zero_or_the_sign() {
    for (code, width, expected) in [
        (&[0x0f, 0xb6, 0x03][..], 1, 0x80_u64),          // movzx eax, byte
        (&[0x0f, 0xbe, 0x03], 1, 0xffff_ff80),           // movsx eax, byte
        (&[0x48, 0x0f, 0xbf, 0x03], 2, 0x0180),          // movsx rax, word
        (&[0x48, 0x63, 0x03], 4, 0xffff_ffff_8002_0180), // movsxd rax, dword
        (&[0x0f, 0x38, 0xf0, 0x03], 4, 0x8001_0280),     // movbe eax, dword
    ] {
        let mut cpu = kernel();
        let mut devices = answering(&[0x80, 0x01, 0x02, 0x80]);
        done(&mut cpu, &mut devices, code);
        assert_eq!((devices.reads[0], cpu.get(RAX)), ((DEVICE, width), expected), "{code:x?}");
    }
}

#[test]
fn arithmetic_on_a_register_reads_it_writes_it_and_sets_flags() {
    const CF: u64 = 1;
    const ZF: u64 = 1 << 6;
    const SF: u64 = 1 << 7;
    const OF: u64 = 1 << 11;
    for (code, answer, expected, flags) in [
        (&[0x83, 0x0b, 0x01][..], 2_u32, Some(3_u32), 0), // or dword [rbx], 1
        (&[0x83, 0x23, 0xfe], 3, Some(2), 0),             // and, -2
        (&[0x83, 0x03, 0x01], u32::MAX, Some(0), CF | ZF), // add, 1
        (&[0x83, 0x03, 0x01], i32::MAX as u32, Some(1 << 31), SF | OF), // add, 1
        (&[0x83, 0x2b, 0x01], 0, Some(u32::MAX), CF | SF), // sub, 1
        (&[0x83, 0x33, 0x05], 5, Some(0), ZF),            // xor, 5
        (&[0x83, 0x3b, 0x05], 5, None, ZF),               // cmp, 5
        (&[0xf7, 0x03, 0, 0, 0, 0x80], 1 << 31, None, SF), // test
        (&[0xff, 0x03], u32::MAX, Some(0), ZF),           // inc
        (&[0xf7, 0x1b], 1, Some(u32::MAX), CF | SF),      // neg
        (&[0xf7, 0x13], 1, Some(0xffff_fffe), 0),         // not
        (&[0x0f, 0xba, 0x2b, 0x04], 1, Some(0x11), 0),    // bts, 4
        (&[0x0f, 0xba, 0x33, 0x00], 1, Some(0), CF),      // btr, 0
        (&[0x0f, 0xba, 0x23, 0x00], 1, None, CF),         // bt, 0
    ] {
        let mut cpu = kernel();
        let mut devices = answering(&answer.to_le_bytes());
        done(&mut cpu, &mut devices, code);
        let writes: Vec<_> = expected.iter().map(|value| (DEVICE, value.to_le_bytes().to_vec())).collect();
        assert_eq!(devices.writes, writes, "{code:x?}");
        assert_eq!(cpu.regs.rflags & (CF | ZF | SF | OF), flags, "{code:x?}");
    }
}

#[test]
fn exchanges_move_both_ways() {
    let mut cpu = kernel();
    cpu.set(RAX, 7);
    let mut devices = answering(&[9, 0, 0, 0]);
    done(&mut cpu, &mut devices, &[0x87, 0x03]);
    assert_eq!((cpu.get(RAX), devices.writes), (9, vec![(DEVICE, vec![7, 0, 0, 0])]));

    // cmpxchg [rbx], ecx: equal, and not.
    for (found, rax, written) in [(7_u8, 7, 5_u8), (8, 8, 8)] {
        let mut cpu = kernel();
        cpu.set(RAX, 7);
        cpu.set(RCX, 5);
        let mut devices = answering(&[found, 0, 0, 0]);
        done(&mut cpu, &mut devices, &[0x0f, 0xb1, 0x0b]);
        assert_eq!((cpu.get(RAX), devices.writes), (rax, vec![(DEVICE, vec![written, 0, 0, 0])]));
    }
}

#[test]
fn strings_go_between_ram_and_a_device_and_ports() {
    let mut cpu = kernel();
    cpu.set(RSI, DATA);
    cpu.set(RDI, DEVICE + 0x100);
    cpu.set(RCX, 3);
    cpu.put(DATA, b"abcdefghijkl");
    let mut devices = Devices::default();
    done(&mut cpu, &mut devices, &[0xf3, 0xa5]);
    assert_eq!(
        devices.writes,
        [
            (DEVICE + 0x100, b"abcd".to_vec()),
            (DEVICE + 0x104, b"efgh".to_vec()),
            (DEVICE + 0x108, b"ijkl".to_vec())
        ]
    );
    assert_eq!((cpu.get(RSI), cpu.get(RDI), cpu.get(RCX)), (DATA + 12, DEVICE + 0x10c, 0));

    let mut cpu = kernel();
    cpu.set(RSI, DATA + 2);
    cpu.set(RDX, 0x3f8);
    cpu.set(RCX, 3);
    cpu.put(DATA, b"abc");
    cpu.regs.rflags |= 1 << 10;
    let mut devices = Devices::default();
    done(&mut cpu, &mut devices, &[0xf3, 0x6e]);
    assert_eq!(devices.outs, [(0x3f8, b"c".to_vec()), (0x3f8, b"b".to_vec()), (0x3f8, b"a".to_vec())]);

    let mut cpu = kernel();
    cpu.set(RDI, DATA);
    cpu.set(RDX, 0x1f0);
    let mut devices = answering(&[1, 2]);
    done(&mut cpu, &mut devices, &[0x66, 0x6d]);
    assert_eq!((devices.ins, cpu.u64(DATA) & 0xffff), (vec![(0x1f0, 2)], 0x0201));
}

#[test]
fn a_string_without_end_is_carried_out_in_parts() {
    let mut cpu = kernel();
    cpu.set(RDI, DEVICE);
    cpu.set(RCX, u64::MAX);
    let rip = cpu.regs.rip;
    let mut devices = Devices::default();
    // It ends at the page that is not mapped: first what was done counts, then the fault.
    let outcome = access(&mut cpu, &mut devices, &[0xf3, 0x48, 0xab]).unwrap();
    assert_eq!(outcome, Outcome::Partly);
    assert_eq!((cpu.regs.rip, devices.writes.len()), (rip, 1024));
    assert_eq!((cpu.get(RDI), cpu.get(RCX)), (DEVICE + 0x2000, u64::MAX - 1024));
    let outcome = access(&mut cpu, &mut devices, &[0xf3, 0x48, 0xab]).unwrap();
    let fault = Event::PageFault { address: DEVICE + 0x2000, error_code: 2 };
    assert_eq!(outcome, Outcome::Injected(fault));

    // stosb of nothing does nothing.
    let mut cpu = kernel();
    done(&mut cpu, &mut devices, &[0xf3, 0xaa]);
}

#[test]
fn ports_are_read_and_written_by_number_and_by_register() {
    let mut cpu = kernel();
    cpu.set(RAX, u64::MAX);
    let mut devices = answering(&[0x12]);
    done(&mut cpu, &mut devices, &[0xe4, 0x64]);
    assert_eq!((&devices.ins[..], cpu.get(RAX)), (&[(0x64, 1)][..], 0xffff_ffff_ffff_ff12));
    cpu.set(RDX, 0x1_0600);
    done(&mut cpu, &mut devices, &[0xef]);
    assert_eq!(devices.outs, [(0x600, vec![0x12, 0xff, 0xff, 0xff])]);
}

#[test]
fn an_access_across_a_page_or_the_end_of_ram_is_cut_into_widths_that_devices_know() {
    let mut cpu = kernel();
    cpu.set(RBX, DEVICE + 0xffd);
    cpu.set(RAX, 0x0403_0201);
    let mut devices = Devices::default();
    done(&mut cpu, &mut devices, &[0x89, 0x03]);
    let byte = |at, value| (DEVICE + at, vec![value]);
    assert_eq!(devices.writes, [byte(0xffd, 1), byte(0xffe, 2), byte(0xfff, 3), byte(0x1000, 4)]);
}

#[test]
fn a_fault_of_the_guest_is_injected_and_changes_nothing() {
    let mut cpu = kernel();
    cpu.sregs.cr0 |= cr0::WP;
    cpu.map(DEVICE, DEVICE | entry::PRESENT);
    let before = cpu.regs;
    let mut devices = Devices::default();
    let fault = Event::PageFault { address: DEVICE, error_code: 3 };
    // or dword [rbx], 1: the device is not even read.
    assert_eq!(access(&mut cpu, &mut devices, &[0x83, 0x0b, 1]).unwrap(), Outcome::Injected(fault));
    assert_eq!((cpu.regs, devices.reads.len()), (before, 0));

    let mut cpu = kernel();
    cpu.sregs.cpl = 3;
    let fault = Event::PageFault { address: DEVICE, error_code: 5 };
    assert_eq!(access(&mut cpu, &mut devices, &[0x8b, 0x03]).unwrap(), Outcome::Injected(fault));
    let mut cpu = kernel();
    let undefined = Event::Exception { vector: exception::UD, error_code: None };
    assert_eq!(access(&mut cpu, &mut devices, &[0x0f, 0x0b]).unwrap(), Outcome::Injected(undefined));
}

#[test]
fn missing_bytes_are_fetched_and_unknown_instructions_named() {
    let mut cpu = kernel();
    cpu.put(cpu.regs.rip, &[0xc7, 0x43, 0x10, 1, 0, 0, 0]);
    let mut devices = Devices::default();
    assert_eq!(access(&mut cpu, &mut devices, &[0xc7]).unwrap(), Outcome::Done);
    assert_eq!(devices.writes, [(DEVICE + 0x10, vec![1, 0, 0, 0])]);
    // movups [rbx], xmm0; mov cr0, rax; mov [rbx], ds
    for code in [&[0x0f, 0x11, 0x03][..], &[0x0f, 0x22, 0xc0], &[0x8c, 0x1b]] {
        let before = cpu.regs;
        let error = access(&mut cpu, &mut devices, code).unwrap_err();
        assert!(matches!(error, AssistError::Unsupported { .. }), "{error}");
        assert_eq!(cpu.regs, before);
    }
}
