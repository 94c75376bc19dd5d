use super::super::regs::rflags::{AC, RF, ZF};
use super::*;

#[test]
fn int3_is_a_breakpoint_that_returns_behind_it() {
    let mut cpu = kernel();
    let event = Event::Exception { vector: 3, error_code: None };
    assert_eq!(assist(&mut cpu, &[0xcc, 0xf4]).unwrap(), Outcome::Injected(event));
    assert_eq!((cpu.injected.as_slice(), cpu.regs.rip), ([event].as_slice(), 0x1_0001));
}

#[test]
fn int1_is_a_debug_trap_that_returns_behind_it() {
    let mut cpu = kernel();
    let event = Event::Exception { vector: 1, error_code: None };
    assert_eq!(assist(&mut cpu, &[0xf1]).unwrap(), Outcome::Injected(event));
    assert_eq!(cpu.regs.rip, 0x1_0001);
}

#[test]
fn int_n_is_a_software_interrupt_with_its_vector() {
    let mut cpu = kernel();
    let event = Event::Interrupt { vector: 0x80 };
    assert_eq!(assist(&mut cpu, &[0xcd, 0x80]).unwrap(), Outcome::Injected(event));
    assert_eq!(cpu.regs.rip, 0x1_0002);
}

#[test]
fn undefined_instructions_are_undefined_in_the_guest() {
    faults(&mut kernel(), &[0x0f, 0xb9, 0xc3], undefined());
    faults(&mut kernel(), &[0x0f, 0x0b], undefined());
    // LOCK before something that cannot be locked.
    faults(&mut kernel(), &[0xf0, 0xf3, 0x0f, 0xb8, 0xc1], undefined());
}

#[test]
fn user_code_gets_an_undefined_instruction() {
    let mut cpu = kernel();
    cpu.sregs.cpl = 3;
    faults(&mut cpu, &[0xcd, 0x20], undefined());
}

#[test]
fn an_unknown_instruction_is_named_with_its_bytes_and_address() {
    let text = unsupported(&mut kernel(), &[0x66, 0x0f, 0xfe, 0xc1, 0xf4]);
    assert!(text.contains("66 0f fe c1 at 0x10000"), "{text}");
}

#[test]
fn an_instruction_ends_the_resume_flag() {
    let mut cpu = kernel();
    cpu.regs.rflags |= RF;
    done(&mut cpu, &[0x0f, 0x01, 0xca]);
    assert_eq!(cpu.regs.rflags & RF, 0);
}

#[test]
fn stac_and_clac_set_and_clear_the_access_flag() {
    let mut cpu = kernel();
    done(&mut cpu, &[0x0f, 0x01, 0xcb]);
    assert_eq!(cpu.regs.rflags, 2 | AC);
    done(&mut cpu, &[0x0f, 0x01, 0xca]);
    assert_eq!(cpu.regs.rflags, 2);
}

#[test]
fn cmpxchg16b_stores_when_equal() {
    let mut cpu = kernel();
    let current = 0x1111_2222_3333_4444_5555_6666_7777_8888_u128;
    cpu.put(DATA, &current.to_le_bytes());
    cpu.set(RAX, current as u64);
    cpu.set(RDX, (current >> 64) as u64);
    cpu.set(RCX, 0xcccc);
    done(&mut cpu, &[0xf0, 0x48, 0x0f, 0xc7, 0x0b]);
    assert_eq!((cpu.u64(DATA), cpu.u64(DATA + 8)), (DATA, 0xcccc));
    assert_eq!(cpu.regs.rflags & ZF, ZF);
    assert_eq!((cpu.get(RAX), cpu.get(RDX)), (current as u64, (current >> 64) as u64));
}

#[test]
fn cmpxchg16b_loads_when_different() {
    let mut cpu = kernel();
    cpu.put(DATA, &7_u128.to_le_bytes());
    cpu.set(RAX, 7);
    cpu.set(RDX, 1);
    cpu.regs.rflags |= ZF;
    done(&mut cpu, &[0x48, 0x0f, 0xc7, 0x0b]);
    assert_eq!((cpu.get(RAX), cpu.get(RDX)), (7, 0));
    assert_eq!(cpu.regs.rflags & ZF, 0);
    assert_eq!((cpu.u64(DATA), cpu.u64(DATA + 8)), (7, 0));
}

#[test]
fn cmpxchg16b_off_its_alignment_is_a_protection_fault() {
    let mut cpu = kernel();
    cpu.set(RBX, DATA + 8);
    faults(&mut cpu, &[0xf0, 0x48, 0x0f, 0xc7, 0x0b], protection());
}

#[test]
fn cmpxchg16b_needs_a_writable_page_even_if_it_would_not_store() {
    let mut cpu = kernel();
    cpu.map(DATA, DATA | 1);
    cpu.set(RAX, 1);
    let event = Event::PageFault { address: DATA, error_code: 3 };
    faults(&mut cpu, &[0x48, 0x0f, 0xc7, 0x0b], event);
}

#[test]
fn xgetbv_gives_xcr0_and_what_of_it_is_in_use() {
    let mut cpu = kernel();
    cpu.set(RDX, u64::MAX);
    done(&mut cpu, &[0x0f, 0x01, 0xd0]);
    assert_eq!((cpu.get(RAX), cpu.get(RDX)), (0xe7, 0));
    cpu.xstate[512] = 0x46;
    cpu.xcr0 = 7;
    cpu.set(RCX, 1);
    done(&mut cpu, &[0x0f, 0x01, 0xd0]);
    assert_eq!(cpu.get(RAX), 6);
    cpu.set(RCX, 2);
    faults(&mut cpu, &[0x0f, 0x01, 0xd0], protection());
}

#[test]
fn xgetbv_without_osxsave_is_undefined() {
    let mut cpu = kernel();
    cpu.sregs.cr4 = 0x20;
    faults(&mut cpu, &[0x0f, 0x01, 0xd0], undefined());
}

#[test]
fn rdtscp_needs_its_register() {
    let mut cpu = kernel();
    cpu.msrs = vec![(0x10, 0x1_2345_6789)];
    faults(&mut cpu, &[0x0f, 0x01, 0xf9], undefined());
    cpu.injected.clear();
    cpu.msrs.push((0xc000_0103, 5));
    done(&mut cpu, &[0x0f, 0x01, 0xf9]);
    assert_eq!((cpu.get(RAX), cpu.get(RDX), cpu.get(RCX)), (0x2345_6789, 1, 5));
}

#[test]
fn invpcid_flushes_and_refuses_what_is_reserved() {
    let invpcid = &[0x66, 0x0f, 0x38, 0x82, 0x0b];
    for kind in 0..=3 {
        let mut cpu = kernel();
        cpu.set(RCX, kind);
        done(&mut cpu, invpcid);
        assert_eq!(cpu.flushes, 1);
    }
    let mut cpu = kernel();
    cpu.set(RCX, 4);
    faults(&mut cpu, invpcid, protection());
    let mut cpu = kernel();
    cpu.put(DATA, &0x1000_u64.to_le_bytes());
    faults(&mut cpu, invpcid, protection());
    assert_eq!(cpu.flushes, 0);
}

#[test]
fn clwb_only_checks_its_address() {
    done(&mut kernel(), &[0x66, 0x0f, 0xae, 0x33]);
    let mut cpu = kernel();
    cpu.set(RBX, 0x80_0000);
    faults(&mut cpu, &[0x66, 0x0f, 0xae, 0x33], Event::PageFault { address: 0x80_0000, error_code: 0 });
}

#[test]
fn clzero_clears_the_line_around_its_address() {
    let mut cpu = kernel();
    cpu.put(DATA, &[0xff; 192]);
    cpu.set(RAX, DATA + 64 + 17);
    done(&mut cpu, &[0x0f, 0x01, 0xfc]);
    assert_eq!(cpu.ram[DATA as usize..][..192], [[0xff; 64], [0; 64], [0xff; 64]].concat());
}

#[test]
fn rdssp_does_nothing_without_shadow_stacks() {
    let mut cpu = kernel();
    cpu.set(RAX, 77);
    done(&mut cpu, &[0xf3, 0x48, 0x0f, 0x1e, 0xc8]);
    assert_eq!(cpu.get(RAX), 77);
}

/// A kernel with a GDT: 8 code, 10h data, 18h read-only data, 20h the TSS, 28h user data that holds a number as its limit.
fn with_segments() -> FakeCpu {
    let mut cpu = kernel();
    let table: [u64; 6] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_9100_0000_ffff,
        0x0000_8900_0000_0067,
        0x0040_f500_0000_0005,
    ];
    for (at, entry) in (0..).zip(table) {
        cpu.put(0x3_0000 + 8 * at, &entry.to_le_bytes());
    }
    cpu.sregs.gdt = super::super::Table { base: 0x3_0000, limit: 8 * 6 - 1 };
    cpu
}

/// ZF and RAX after an instruction on this selector in CX.
fn looked_up(code: &[u8], selector: u64) -> Option<u64> {
    let mut cpu = with_segments();
    cpu.set(RCX, selector);
    cpu.set(RAX, 0xffff_ffff_ffff_ffff);
    done(&mut cpu, code);
    (cpu.regs.rflags & ZF != 0).then_some(cpu.get(RAX))
}

#[test]
fn lsl_gives_the_limit_of_a_visible_segment() {
    let lsl = &[0x0f, 0x03, 0xc1];
    assert_eq!(looked_up(lsl, 0x2b), Some(5));
    assert_eq!(looked_up(lsl, 0x10), Some(0xffff_ffff));
    assert_eq!(looked_up(lsl, 0x20), Some(0x67));
    // Null, behind the table, a requested level that may not see it, an LDT that is not there.
    for hidden in [0, 3, 0x30, 0xfff8, 0x13, 0x2c] {
        assert_eq!(looked_up(lsl, hidden), None, "{hidden:#x}");
    }
}

#[test]
fn lar_gives_the_rights_of_a_visible_segment() {
    assert_eq!(looked_up(&[0x0f, 0x02, 0xc1], 8), Some(0x00af_9b00 & 0x00ff_ff00));
    assert_eq!(looked_up(&[0x0f, 0x02, 0xc1], 0x30), None);
}

#[test]
fn verr_and_verw_tell_readable_from_writable() {
    let visible = |code: &[u8], selector| looked_up(code, selector).is_some();
    let (verr, verw) = (&[0x0f, 0x00, 0xe1], &[0x0f, 0x00, 0xe9]);
    assert!(visible(verr, 8) && visible(verr, 0x18) && visible(verw, 0x10));
    assert!(!visible(verw, 8) && !visible(verw, 0x18) && !visible(verr, 0x20) && !visible(verw, 0));
}

#[test]
fn verw_takes_its_selector_from_memory() {
    let mut cpu = with_segments();
    cpu.put(DATA, &[0x10, 0]);
    done(&mut cpu, &[0x0f, 0x00, 0x2b]);
    assert_eq!(cpu.regs.rflags & ZF, ZF);
}
