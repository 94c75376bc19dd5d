use super::super::regs::Segment;
use super::*;

/// popcnt rax, [rbx]
const POPCNT: &[u8] = &[0xf3, 0x48, 0x0f, 0xb8, 0x03];

#[test]
fn missing_bytes_are_fetched_from_memory() {
    for shown in 0..POPCNT.len() {
        let mut cpu = kernel();
        cpu.put(DATA, &[1]);
        cpu.put(cpu.regs.rip, POPCNT);
        assert_eq!(assist(&mut cpu, &POPCNT[..shown]).unwrap(), Outcome::Done);
        assert_eq!((cpu.get(RAX), cpu.regs.rip), (1, 0x1_0005));
    }
}

#[test]
fn bytes_are_fetched_across_a_page_and_fault_there() {
    let mut cpu = kernel();
    cpu.regs.rip = 0x1_0ffe;
    cpu.put(cpu.regs.rip, &POPCNT[..2]);
    cpu.map(0x1_1000, 0);
    faults(&mut cpu, &[], Event::PageFault { address: 0x1_1000, error_code: 0x10 });
}

#[test]
fn an_instruction_longer_than_fifteen_bytes_is_a_protection_fault() {
    let mut cpu = kernel();
    cpu.put(cpu.regs.rip, &[0x66; 32]);
    let event = protection();
    assert_eq!(assist(&mut cpu, &[0x66; 3]).unwrap(), Outcome::Injected(event));
}

#[test]
fn operands_cross_pages() {
    let mut cpu = kernel();
    // Two neighbours in linear memory, apart in physical memory.
    cpu.map(DATA, 0x2_8000 | 3);
    cpu.map(DATA + 0x1000, 0x2_4000 | 3);
    cpu.put(0x2_8ffc, &[0xff; 4]);
    cpu.put(0x2_4000, &[1, 0, 0, 1]);
    cpu.set(RBX, DATA + 0xffc);
    done(&mut cpu, POPCNT);
    assert_eq!(cpu.get(RAX), 34);
}

#[test]
fn a_fault_on_the_second_page_names_that_page() {
    let mut cpu = kernel();
    cpu.map(DATA + 0x1000, 0);
    cpu.set(RBX, DATA + 0xffc);
    faults(&mut cpu, POPCNT, Event::PageFault { address: DATA + 0x1000, error_code: 0 });
}

#[test]
fn a_store_that_faults_on_its_second_page_has_stored_nothing() {
    let mut cpu = kernel();
    cpu.map(DATA + 0x1000, (DATA + 0x1000) | 1);
    cpu.xstate[160..168].fill(0xee);
    cpu.set(RBX, DATA + 0xffc);
    // movq [rbx], xmm0
    faults(&mut cpu, &[0x66, 0x0f, 0xd6, 0x03], Event::PageFault { address: DATA + 0x1000, error_code: 3 });
    assert_eq!(cpu.ram[DATA as usize + 0xffc..][..8], [0; 8]);
}

#[test]
fn fs_and_gs_have_their_bases() {
    let mut cpu = kernel();
    cpu.sregs.fs.base = 0x1000;
    cpu.sregs.ds.base = 0x5000;
    cpu.put(DATA + 0x1000, &[7]);
    done(&mut cpu, &[0x64, 0xf3, 0x0f, 0xb8, 0x03]);
    assert_eq!(cpu.get(RAX), 3);
    cpu.sregs.gs.base = 0_u64.wrapping_sub(0x40);
    cpu.set(RBX, DATA + 0x1040);
    done(&mut cpu, &[0x65, 0xf3, 0x0f, 0xb8, 0x03]);
    assert_eq!(cpu.get(RAX), 3);
}

#[test]
fn an_address_relative_to_rip_counts_from_the_next_instruction() {
    let mut cpu = kernel();
    cpu.put(0x1_0009 + 0x1000, &[0x1f]);
    done(&mut cpu, &[0xf3, 0x48, 0x0f, 0xb8, 0x05, 0x00, 0x10, 0x00, 0x00]);
    assert_eq!(cpu.get(RAX), 5);
}

#[test]
fn a_32_bit_address_wraps() {
    let mut cpu = kernel();
    // cmpxchg16b [esi + 8*edi + 10h]
    cpu.set(RSI, 0xabcd_0000_ffff_fff0);
    cpu.set(RDI, DATA / 8);
    cpu.put(DATA, &5_u128.to_le_bytes());
    done(&mut cpu, &[0x67, 0x48, 0x0f, 0xc7, 0x4c, 0xfe, 0x10]);
    assert_eq!(cpu.get(RAX), 5);
}

#[test]
fn an_address_that_is_not_canonical_is_no_page_fault() {
    let mut cpu = kernel();
    cpu.set(RBX, 0x0000_8000_0000_0000);
    faults(&mut cpu, POPCNT, protection());
    let mut cpu = kernel();
    cpu.set(RSP, 0x0000_8000_0000_0000);
    let stack = Event::Exception { vector: exception::SS, error_code: Some(0) };
    faults(&mut cpu, &[0xf3, 0x48, 0x0f, 0xb8, 0x04, 0x24], stack);
}

#[test]
fn an_operand_outside_ram_is_an_error_with_its_address() {
    let mut cpu = kernel();
    cpu.map(DATA, 0xd000_0000 | 3);
    let error = assist(&mut cpu, POPCNT).unwrap_err();
    assert!(matches!(error, AssistError::NotRam { rip: 0x1_0000, gpa: 0xd000_0000 }), "{error}");
}

#[test]
fn protected_mode_adds_the_segment_and_checks_its_limit() {
    let mut cpu = FakeCpu::protected_mode();
    cpu.sregs.ds = Segment { base: DATA - 0x1000, limit: 0x1003, kind: 3, ..Segment::default() };
    cpu.put(DATA, &[0xff; 8]);
    cpu.set(RBX, 0x1000);
    done(&mut cpu, &[0xf3, 0x0f, 0xb8, 0x03]);
    assert_eq!(cpu.get(RAX), 32);
    cpu.sregs.ds.limit = 0x1002;
    faults(&mut cpu, &[0xf3, 0x0f, 0xb8, 0x03], protection());
}

#[test]
fn a_segment_that_is_not_loaded_is_a_fault_of_its_kind() {
    let mut cpu = FakeCpu::protected_mode();
    cpu.sregs.ss.unusable = true;
    let stack = Event::Exception { vector: exception::SS, error_code: Some(0) };
    faults(&mut cpu, &[0x36, 0xf3, 0x0f, 0xb8, 0x03], stack);
}

#[test]
fn a_segment_that_expands_down_ends_at_its_limit() {
    let mut cpu = FakeCpu::protected_mode();
    cpu.sregs.ds = Segment { limit: 0xfff, kind: 7, big: true, ..Segment::default() };
    cpu.set(RBX, 0x1000);
    done(&mut cpu, &[0xf3, 0x0f, 0xb8, 0x03]);
    cpu.set(RBX, 0xfff);
    faults(&mut cpu, &[0xf3, 0x0f, 0xb8, 0x03], protection());
}

#[test]
fn rip_wraps_at_32_bits_in_protected_mode() {
    let mut cpu = FakeCpu::protected_mode();
    cpu.regs.rip = 0xffff_fffe;
    assert_eq!(assist(&mut cpu, &[0x0f, 0x01, 0xca]).unwrap(), Outcome::Done);
    assert_eq!(cpu.regs.rip, 1);
}
