use super::*;

const XSAVE: &[u8] = &[0x0f, 0xae, 0x23];
const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x23];
const XSAVEOPT64: &[u8] = &[0x48, 0x0f, 0xae, 0x33];
const XSAVEC64: &[u8] = &[0x48, 0x0f, 0xc7, 0x23];
const XSAVES64: &[u8] = &[0x48, 0x0f, 0xc7, 0x2b];

/// Bytes of the standard format with AVX-512.
const LEN: usize = 0x980;
/// What memory held before.
const OLD: u8 = 0x5a;

/// A kernel whose extended state is a pattern, every component in use, all requested, and an area full of [`OLD`] with
/// an empty header.
pub(super) fn with_state() -> FakeCpu {
    let mut cpu = kernel();
    for (at, byte) in cpu.xstate.iter_mut().enumerate() {
        // Never zero, and different from 64 bytes on.
        *byte = (at % 251 + at / 251) as u8 | 1;
    }
    cpu.xstate[24..28].copy_from_slice(&0x9fc0_u32.to_le_bytes());
    cpu.xstate[28..32].copy_from_slice(&0x2_ffff_u32.to_le_bytes());
    cpu.xstate[512..576].fill(0);
    cpu.xstate[512] = 0xe7;
    cpu.set(RAX, 0xffff_ffff);
    cpu.set(RDX, 0xffff_ffff);
    cpu.put(DATA, &[OLD; LEN]);
    cpu.put(DATA + 512, &[0; 64]);
    cpu
}

fn area(cpu: &FakeCpu) -> &[u8] {
    &cpu.ram[DATA as usize..][..LEN]
}

/// Whether these bytes of the area are the state's, or what they were before.
#[track_caller]
fn saved(cpu: &FakeCpu, range: std::ops::Range<usize>, saved: bool) {
    let (found, state) = (&area(cpu)[range.clone()], &cpu.xstate[range.clone()]);
    if saved {
        assert!(found == state, "{range:?} is not the state");
    } else {
        assert!(found.iter().all(|&byte| byte == OLD), "{range:?} was written");
    }
}

#[test]
fn xsave64_stores_every_requested_component() {
    let mut cpu = with_state();
    done(&mut cpu, XSAVE64);
    saved(&cpu, 0..416, true);
    saved(&cpu, 416..512, false);
    saved(&cpu, 576..0x340, true);
    saved(&cpu, 0x340..LEN, true);
    assert_eq!(area(&cpu)[512..576], cpu.xstate[512..576]);
}

#[test]
fn xsave_stores_nothing_that_is_not_requested() {
    let mut cpu = with_state();
    cpu.set(RAX, 2);
    cpu.set(RDX, 0);
    done(&mut cpu, XSAVE64);
    saved(&cpu, 0..24, false);
    saved(&cpu, 24..32, true);
    saved(&cpu, 32..160, false);
    saved(&cpu, 160..416, true);
    saved(&cpu, 576..LEN, false);
    assert_eq!(area(&cpu)[512], 2);
}

#[test]
fn xsave_of_avx_alone_stores_mxcsr_too() {
    let mut cpu = with_state();
    cpu.set(RAX, 4);
    done(&mut cpu, XSAVE64);
    saved(&cpu, 0..24, false);
    saved(&cpu, 24..32, true);
    saved(&cpu, 160..416, false);
    saved(&cpu, 576..0x340, true);
}

#[test]
fn xsave_of_x87_alone_leaves_mxcsr() {
    let mut cpu = with_state();
    cpu.set(RAX, 1);
    done(&mut cpu, XSAVE64);
    saved(&cpu, 0..24, true);
    saved(&cpu, 24..32, false);
    saved(&cpu, 32..160, true);
}

#[test]
fn xsave_requests_only_what_xcr0_enables() {
    let mut cpu = with_state();
    cpu.xcr0 = 7;
    done(&mut cpu, XSAVE64);
    saved(&cpu, 576..0x340, true);
    saved(&cpu, 0x340..LEN, false);
    assert_eq!(area(&cpu)[512], 7);
}

#[test]
fn xsave_keeps_the_header_bits_it_was_not_asked_about() {
    let mut cpu = with_state();
    cpu.put(DATA + 512, &0xff00_0000_0000_0082_u64.to_le_bytes());
    cpu.put(DATA + 520, &[OLD; 56]);
    cpu.xstate[512] = 0x04;
    cpu.set(RAX, 6);
    done(&mut cpu, XSAVE64);
    assert_eq!(cpu.u64(DATA + 512), 0xff00_0000_0000_0084);
    saved(&cpu, 520..576, false);
}

#[test]
fn xsave_stores_initial_components_and_xsaveopt_does_not() {
    for (code, stores) in [(XSAVE64, true), (XSAVEOPT64, false)] {
        let mut cpu = with_state();
        cpu.xstate[512] = 0x03;
        cpu.xstate[576..0x340].fill(0);
        done(&mut cpu, code);
        saved(&cpu, 576..0x340, stores);
        saved(&cpu, 0..416, true);
        assert_eq!(cpu.u64(DATA + 512), 3);
    }
}

#[test]
fn xsaveopt_stores_mxcsr_whatever_is_in_use() {
    let mut cpu = with_state();
    cpu.xstate[512] = 0;
    done(&mut cpu, XSAVEOPT64);
    saved(&cpu, 0..24, false);
    saved(&cpu, 24..32, true);
    saved(&cpu, 32..512, false);
    assert_eq!(cpu.u64(DATA + 512), 0);
}

#[test]
fn the_short_form_of_xsave_keeps_32_bits_of_the_pointers() {
    let mut cpu = with_state();
    done(&mut cpu, XSAVE);
    saved(&cpu, 0..12, true);
    assert_eq!(area(&cpu)[12..16], [0; 4]);
    saved(&cpu, 16..20, true);
    assert_eq!(area(&cpu)[20..24], [0; 4]);
    saved(&cpu, 24..416, true);
}

#[test]
fn xsavec_packs_what_is_requested_and_stores_what_is_in_use() {
    let mut cpu = with_state();
    cpu.set(RAX, 0xa7);
    cpu.set(RDX, 0);
    cpu.xstate[512] = 0x86;
    done(&mut cpu, XSAVEC64);
    assert_eq!((cpu.u64(DATA + 512), cpu.u64(DATA + 520)), (0x86, 1 << 63 | 0xa7));
    saved(&cpu, 0..24, false);
    saved(&cpu, 24..32, true);
    saved(&cpu, 576..0x340, true);
    // The masks of component 5 follow at 340h, unused; component 7 then stands at 380h instead of 580h.
    saved(&cpu, 0x340..0x380, false);
    assert!(area(&cpu)[0x380..0x780] == cpu.xstate[0x580..0x980]);
    saved(&cpu, 0x780..LEN, false);
}

#[test]
fn xsavec_counts_mxcsr_to_the_xmm_registers() {
    let mut cpu = with_state();
    cpu.xstate[512] = 0;
    done(&mut cpu, XSAVEC64);
    assert_eq!(cpu.u64(DATA + 512), 2);
    saved(&cpu, 24..32, true);
    cpu.xstate[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    cpu.put(DATA, &[OLD; 512]);
    done(&mut cpu, XSAVEC64);
    assert_eq!(cpu.u64(DATA + 512), 0);
    saved(&cpu, 0..512, false);
}

#[test]
fn xsaves_with_supervisor_components_is_not_assisted() {
    let mut cpu = with_state();
    cpu.msrs = vec![(0xda0, 0)];
    done(&mut cpu, XSAVES64);
    cpu.msrs = vec![(0xda0, 0x800)];
    unsupported(&mut cpu, XSAVES64);
}

#[test]
fn outside_64_bit_mode_the_upper_registers_are_not_there() {
    let mut cpu = with_state();
    cpu.sregs.cr0 = super::super::cr0::PE;
    cpu.sregs.efer = 0;
    (cpu.sregs.cs.long, cpu.sregs.cs.big) = (false, true);
    done(&mut cpu, XSAVE);
    saved(&cpu, 160..288, true);
    saved(&cpu, 288..416, false);
    saved(&cpu, 576..0x2c0, true);
    saved(&cpu, 0x2c0..0x340, false);
    saved(&cpu, 0x340..0x480, true);
    saved(&cpu, 0x480..LEN, false);
}

#[test]
fn an_area_off_its_alignment_is_a_protection_fault() {
    let mut cpu = with_state();
    cpu.set(RBX, DATA + 32);
    faults(&mut cpu, XSAVE64, protection());
}

#[test]
fn xsave_depends_on_osxsave_and_task_switched() {
    let mut cpu = with_state();
    cpu.sregs.cr4 &= !super::super::cr4::OSXSAVE;
    faults(&mut cpu, XSAVE64, undefined());
    let mut cpu = with_state();
    cpu.sregs.cr0 |= super::super::cr0::TS;
    faults(&mut cpu, XSAVE64, not_available());
}

#[test]
fn an_area_that_crosses_into_a_read_only_page_is_not_touched() {
    let mut cpu = with_state();
    cpu.put(DATA + 0xe00, &[OLD; 512]);
    cpu.map(DATA + 0x1000, (DATA + 0x1000) | 1);
    cpu.set(RBX, DATA + 0xe00);
    let event = Event::PageFault { address: DATA + 0x1000, error_code: 3 };
    faults(&mut cpu, XSAVE64, event);
    assert_eq!(cpu.ram[DATA as usize + 0xe00..][..512], [OLD; 512]);
}

#[test]
fn an_area_may_span_pages_that_are_apart() {
    let mut cpu = with_state();
    cpu.map(DATA + 0x1000, 0x3_0000 | 3);
    cpu.set(RBX, DATA + 0xe00);
    done(&mut cpu, XSAVE64);
    assert!(cpu.ram[DATA as usize + 0xe00..][..416] == cpu.xstate[..416]);
    assert!(cpu.ram[0x3_0040..][..LEN - 576] == cpu.xstate[576..]);
}

#[test]
fn an_image_that_is_too_short_is_an_error() {
    let mut cpu = with_state();
    cpu.xstate.truncate(832);
    let error = assist(&mut cpu, XSAVE64).unwrap_err();
    assert!(matches!(error, AssistError::StateImage { need: LEN, have: 832 }), "{error}");
}
