use super::*;

/// Bytes of an XMM register in the image.
fn xmm(cpu: &FakeCpu, register: usize) -> u128 {
    u128::from_le_bytes(cpu.xstate[160 + 16 * register..][..16].try_into().unwrap())
}

fn set_xmm(cpu: &mut FakeCpu, register: usize, value: u128) {
    cpu.xstate[160 + 16 * register..][..16].copy_from_slice(&value.to_le_bytes());
    cpu.xstate[512] |= 2;
}

#[test]
fn movq_and_movd_fill_an_xmm_register_from_below() {
    let mut cpu = kernel();
    set_xmm(&mut cpu, 3, u128::MAX);
    cpu.set(RAX, 0x1122_3344_5566_7788);
    done(&mut cpu, &[0x66, 0x48, 0x0f, 0x6e, 0xd8]);
    assert_eq!(xmm(&cpu, 3), 0x1122_3344_5566_7788);
    set_xmm(&mut cpu, 3, 0xaaaa_bbbb_cccc_dddd_eeee_ffff_1111_2222);
    done(&mut cpu, &[0xf3, 0x44, 0x0f, 0x7e, 0xcb]);
    assert_eq!(xmm(&cpu, 9), 0xeeee_ffff_1111_2222);
    done(&mut cpu, &[0x66, 0x0f, 0x7e, 0xd8]);
    assert_eq!(cpu.get(RAX), 0x1111_2222);
}

#[test]
fn movq_stores_eight_bytes() {
    let mut cpu = kernel();
    cpu.put(DATA, &[0xff; 16]);
    set_xmm(&mut cpu, 3, 0x1234);
    done(&mut cpu, &[0x66, 0x0f, 0xd6, 0x1b]);
    assert_eq!((cpu.u64(DATA), cpu.u64(DATA + 8)), (0x1234, u64::MAX));
}

#[test]
fn movntdqa_loads_aligned_memory_only() {
    let mut cpu = kernel();
    cpu.put(DATA, &7_u128.to_le_bytes());
    done(&mut cpu, &[0x66, 0x0f, 0x38, 0x2a, 0x1b]);
    assert_eq!(xmm(&cpu, 3), 7);
    cpu.set(RBX, DATA + 4);
    faults(&mut cpu, &[0x66, 0x0f, 0x38, 0x2a, 0x1b], protection());
}

#[test]
fn pxor_clears_and_combines() {
    let mut cpu = kernel();
    set_xmm(&mut cpu, 3, 0xff);
    cpu.put(DATA, &0xf0f0_u128.to_le_bytes());
    done(&mut cpu, &[0x66, 0x0f, 0xef, 0x1b]);
    assert_eq!(xmm(&cpu, 3), 0xf00f);
    done(&mut cpu, &[0x66, 0x0f, 0xef, 0xdb]);
    assert_eq!(xmm(&cpu, 3), 0);
}

#[test]
fn mxcsr_is_loaded_and_stored() {
    let mut cpu = kernel();
    cpu.put(DATA, &0x3f80_u32.to_le_bytes());
    done(&mut cpu, &[0x0f, 0xae, 0x13]);
    cpu.put(DATA, &[0; 4]);
    done(&mut cpu, &[0x0f, 0xae, 0x1b]);
    assert_eq!(cpu.u64(DATA), 0x3f80);
}

#[test]
fn mxcsr_with_a_reserved_bit_is_a_protection_fault() {
    let mut cpu = kernel();
    cpu.put(DATA, &0x4_1f80_u32.to_le_bytes());
    faults(&mut cpu, &[0x0f, 0xae, 0x13], protection());
}

#[test]
fn sse_needs_its_bit_and_a_task_that_was_not_switched() {
    let mut cpu = kernel();
    cpu.sregs.cr0 |= 8;
    faults(&mut cpu, &[0x66, 0x0f, 0xef, 0xdb], not_available());
    let mut cpu = kernel();
    cpu.sregs.cr4 &= !0x200;
    faults(&mut cpu, &[0x66, 0x0f, 0xef, 0xdb], undefined());
}

#[test]
fn mmx_forms_are_not_assisted() {
    unsupported(&mut kernel(), &[0x48, 0x0f, 0x6e, 0xc0]);
}

#[test]
fn the_x87_status_is_stored_and_cleared() {
    let mut cpu = kernel();
    cpu.xstate[2..4].copy_from_slice(&0xb8c1_u16.to_le_bytes());
    cpu.xstate[512] |= 1;
    cpu.set(RAX, 0x1_0000);
    done(&mut cpu, &[0xdf, 0xe0]);
    assert_eq!(cpu.get(RAX), 0x1_b8c1);
    done(&mut cpu, &[0xdb, 0xe2]);
    done(&mut cpu, &[0xdd, 0x3b]);
    assert_eq!(cpu.u64(DATA), 0x3800);
}

#[test]
fn fwait_raises_what_is_pending() {
    done(&mut kernel(), &[0x9b]);
    let mut cpu = kernel();
    cpu.xstate[2] = 0x81;
    faults(&mut cpu, &[0x9b], Event::Exception { vector: exception::MF, error_code: None });
}

#[test]
fn emms_empties_the_registers() {
    let mut cpu = kernel();
    cpu.xstate[4] = 0xff;
    cpu.xstate[512] |= 1;
    done(&mut cpu, &[0x0f, 0x77]);
    assert_eq!(cpu.xstate[4], 0);
}
