use super::super::regs::rflags::{AF, CF, OF, PF, SF, STATUS, ZF};
use super::*;

/// RAX after an instruction with these RBX and RCX, and the status flags, which were all set before.
fn on(code: &[u8], rbx: u64, rcx: u64) -> (u64, u64) {
    let mut cpu = FakeCpu::mapped();
    cpu.set(RAX, 0xaaaa_bbbb_cccc_dddd);
    cpu.set(RBX, rbx);
    cpu.set(RCX, rcx);
    cpu.regs.rflags |= STATUS;
    done(&mut cpu, code);
    (cpu.get(RAX), cpu.regs.rflags & STATUS)
}

#[test]
fn popcnt_counts_and_clears_every_status_flag() {
    assert_eq!(on(&[0xf3, 0x48, 0x0f, 0xb8, 0xc1], 0, 0xf0f0_0000_0000_0001), (9, 0));
}

#[test]
fn popcnt_of_zero_sets_only_the_zero_flag() {
    assert_eq!(on(&[0xf3, 0x0f, 0xb8, 0xc1], 0, 0xffff_ffff_0000_0000), (0, ZF));
}

#[test]
fn popcnt_of_16_bits_keeps_the_rest_of_its_destination() {
    assert_eq!(on(&[0x66, 0xf3, 0x0f, 0xb8, 0xc1], 0, 0x1_ffff), (0xaaaa_bbbb_cccc_0010, 0));
}

#[test]
fn popcnt_reads_memory() {
    let mut cpu = kernel();
    cpu.put(DATA, &[0xff; 8]);
    done(&mut cpu, &[0xf3, 0x48, 0x0f, 0xb8, 0x03]);
    assert_eq!(cpu.get(RAX), 64);
}

#[test]
fn crc32_agrees_with_the_published_check_value() {
    // CRC-32C of "123456789" is e3069283h.
    let mut cpu = FakeCpu::mapped();
    cpu.set(RAX, 0xffff_ffff);
    for byte in b"123456789" {
        cpu.set(RCX, u64::from(*byte));
        done(&mut cpu, &[0xf2, 0x0f, 0x38, 0xf0, 0xc1]);
    }
    assert_eq!(cpu.get(RAX) ^ 0xffff_ffff, 0xe306_9283);
}

#[test]
fn crc32_of_eight_bytes_is_that_of_the_bytes_one_by_one() {
    let data = 0x0123_4567_89ab_cdef_u64;
    let mut cpu = FakeCpu::mapped();
    cpu.set(RAX, 0x1234_5678);
    for byte in data.to_le_bytes() {
        cpu.set(RCX, u64::from(byte));
        done(&mut cpu, &[0xf2, 0x0f, 0x38, 0xf0, 0xc1]);
    }
    let bytewise = cpu.get(RAX);
    cpu.set(RAX, 0xffff_ffff_1234_5678);
    cpu.set(RCX, data);
    done(&mut cpu, &[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc1]);
    assert_eq!(cpu.get(RAX), bytewise);
}

#[test]
fn andn_inverts_its_first_source() {
    let (value, flags) = on(&[0xc4, 0xe2, 0xe0, 0xf2, 0xc1], 0x0f, 0x8000_0000_0000_00ff);
    assert_eq!((value, flags & (CF | ZF | SF | OF)), (0x8000_0000_0000_00f0, SF));
    let (value, flags) = on(&[0xc4, 0xe2, 0x60, 0xf2, 0xc1], 0xff, 0xff);
    assert_eq!((value, flags & (CF | ZF | SF | OF)), (0, ZF));
}

#[test]
fn bextr_extracts_what_its_control_names() {
    let bextr = &[0xc4, 0xe2, 0xf0, 0xf7, 0xc3];
    assert_eq!(on(bextr, 0xabcd_ef01, 8 | 12 << 8).0, 0xdef);
    assert_eq!(on(bextr, u64::MAX, 60 | 200 << 8).0, 0xf);
    assert_eq!(on(bextr, u64::MAX, 64 | 8 << 8).0, 0);
    let (value, flags) = on(bextr, u64::MAX, 4);
    assert_eq!((value, flags & (CF | ZF | OF)), (0, ZF));
}

#[test]
fn the_lowest_set_bit_is_isolated_masked_and_reset() {
    // These write RBX, RCX or RDX: read them back through a vCPU.
    let run = |code: &[u8], register: usize, rbx| {
        let mut cpu = FakeCpu::mapped();
        cpu.set(RBX, rbx);
        done(&mut cpu, code);
        (cpu.get(register), cpu.regs.rflags & (CF | ZF | SF | OF))
    };
    let (blsi, blsr, blsmsk) =
        (&[0xc4, 0xe2, 0xe0, 0xf3, 0xdb], &[0xc4, 0xe2, 0xf0, 0xf3, 0xcb], &[0xc4, 0xe2, 0xe8, 0xf3, 0xd3]);
    assert_eq!(run(blsi, RBX, 0x58), (8, CF));
    assert_eq!(run(blsi, RBX, 0), (0, ZF));
    assert_eq!(run(blsr, RCX, 0x58), (0x50, 0));
    assert_eq!(run(blsr, RCX, 0), (0, ZF | CF));
    assert_eq!(run(blsmsk, RDX, 0x58), (0xf, 0));
    assert_eq!(run(blsmsk, RDX, 0), (u64::MAX, SF | CF));
}

#[test]
fn bzhi_clears_from_its_index_on_and_carries_when_that_is_too_far() {
    let bzhi = &[0xc4, 0xe2, 0xf0, 0xf5, 0xc3];
    let flags = CF | ZF | SF | OF;
    let (value, got) = on(bzhi, u64::MAX, 0xff05);
    assert_eq!((value, got & flags), (0x1f, 0));
    let (value, got) = on(bzhi, u64::MAX, 64);
    assert_eq!((value, got & flags), (u64::MAX, SF | CF));
    let (value, got) = on(bzhi, u64::MAX, 0);
    assert_eq!((value, got & flags), (0, ZF));
}

#[test]
fn mulx_puts_both_halves_and_no_flags() {
    let mut cpu = FakeCpu::mapped();
    cpu.set(RDX, u64::MAX);
    cpu.set(RCX, u64::MAX);
    cpu.regs.rflags |= STATUS;
    done(&mut cpu, &[0xc4, 0xe2, 0xcb, 0xf6, 0xc1]);
    assert_eq!((cpu.get(RAX), cpu.get(RSI)), (u64::MAX - 1, 1));
    assert_eq!(cpu.regs.rflags & STATUS, STATUS);
}

#[test]
fn mulx_into_one_register_keeps_the_upper_half() {
    let mut cpu = FakeCpu::mapped();
    cpu.set(RDX, 1 << 63);
    cpu.set(RCX, 6);
    done(&mut cpu, &[0xc4, 0xe2, 0xfb, 0xf6, 0xc1]);
    assert_eq!(cpu.get(RAX), 3);
}

#[test]
fn pdep_and_pext_are_inverse_over_a_mask() {
    let mask = 0xf0f0_0000_ff00_0001;
    let (scattered, _) = on(&[0xc4, 0xe2, 0xe3, 0xf5, 0xc1], 0x1_2345, mask);
    assert_eq!(scattered & !mask, 0);
    assert_eq!(on(&[0xc4, 0xe2, 0xe2, 0xf5, 0xc1], scattered, mask).0, 0x1_2345);
}

#[test]
fn shifts_take_their_count_modulo_their_width_and_leave_the_flags() {
    let (shlx, shrx32, sarx, sarx32) = (
        &[0xc4, 0xe2, 0xf1, 0xf7, 0xc3],
        &[0xc4, 0xe2, 0x73, 0xf7, 0xc3],
        &[0xc4, 0xe2, 0xf2, 0xf7, 0xc3],
        &[0xc4, 0xe2, 0x72, 0xf7, 0xc3],
    );
    assert_eq!(on(shlx, 3, 64 + 4), (0x30, STATUS));
    assert_eq!(on(shrx32, 0xffff_ffff_8000_0000, 32 + 31), (1, STATUS));
    assert_eq!(on(sarx, 1 << 63, 63), (u64::MAX, STATUS));
    assert_eq!(on(sarx32, 0x8000_0000, 31), (0xffff_ffff, STATUS));
}

#[test]
fn rorx_rotates_within_its_width() {
    assert_eq!(on(&[0xc4, 0xe3, 0xfb, 0xf0, 0xc3, 5], 0x21, 0), (0x0800_0000_0000_0001, STATUS));
    assert_eq!(on(&[0xc4, 0xe3, 0x7b, 0xf0, 0xc3, 5], 0xffff_ffff_0000_0021, 0), (0x0800_0001, STATUS));
}

#[test]
fn adcx_and_adox_touch_only_their_own_flag() {
    let run = |code: &[u8], rax, rbx, flags| {
        let mut cpu = FakeCpu::mapped();
        cpu.set(RAX, rax);
        cpu.set(RBX, rbx);
        cpu.regs.rflags |= flags;
        done(&mut cpu, code);
        (cpu.get(RAX), cpu.regs.rflags & STATUS)
    };
    let (adcx, adox32) = (&[0x66, 0x48, 0x0f, 0x38, 0xf6, 0xc3], &[0xf3, 0x0f, 0x38, 0xf6, 0xc3]);
    assert_eq!(run(adcx, u64::MAX, 0, CF | SF | PF | AF), (0, CF | SF | PF | AF));
    assert_eq!(run(adcx, u64::MAX, 0, OF), (u64::MAX, OF));
    assert_eq!(run(adox32, 0xffff_ffff, 1, CF), (0, CF | OF));
    assert_eq!(run(adox32, 1, 1, OF | ZF), (3, ZF));
}
