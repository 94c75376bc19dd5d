use super::super::testing::layout_with_avx512;
use super::super::xstate::XstateLayout;
use super::xsave::with_state;
use super::*;

const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2b];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2b];
const XRSTORS64: &[u8] = &[0x48, 0x0f, 0xc7, 0x1b];
const LEN: usize = 0x980;

/// A kernel with a pattern in its registers and an area in memory with another one, all of it valid.
fn with_area() -> FakeCpu {
    let mut cpu = with_state();
    let mut area: Vec<u8> = (0..LEN).map(|at| (at % 239 + at / 239) as u8 | 2).collect();
    area[24..28].copy_from_slice(&0x1fa0_u32.to_le_bytes());
    area[512..576].fill(0);
    area[512] = 0xe7;
    cpu.put(DATA, &area);
    cpu
}

fn area(cpu: &FakeCpu) -> &[u8] {
    &cpu.ram[DATA as usize..][..LEN]
}

fn mxcsr(cpu: &FakeCpu) -> u32 {
    u32::from_le_bytes(cpu.xstate[24..28].try_into().unwrap())
}

/// Carries it out and gives the registers before.
#[track_caller]
fn restored(cpu: &mut FakeCpu, code: &[u8]) -> Vec<u8> {
    let before = cpu.xstate.clone();
    done(cpu, code);
    before
}

#[test]
fn xrstor64_loads_every_requested_component() {
    let mut cpu = with_area();
    restored(&mut cpu, XRSTOR64);
    assert!(cpu.xstate[..28] == area(&cpu)[..28]);
    assert!(cpu.xstate[32..416] == area(&cpu)[32..416]);
    assert!(cpu.xstate[576..] == area(&cpu)[576..]);
    assert_eq!(cpu.xstate[512..576], area(&cpu)[512..576]);
}

#[test]
fn what_xsave_stored_comes_back_whole() {
    let mut cpu = with_state();
    let before = cpu.xstate.clone();
    done(&mut cpu, &[0x48, 0x0f, 0xae, 0x23]);
    cpu.xstate = FakeCpu::long_mode().xstate;
    done(&mut cpu, XRSTOR64);
    assert!(cpu.xstate[..416] == before[..416] && cpu.xstate[512..] == before[512..]);
}

#[test]
fn what_xsavec_stored_comes_back_whole() {
    for in_use in [0xe7, 0x86, 0x02, 0x41] {
        let mut cpu = with_state();
        let mut state = cpu.xstate.clone();
        state[512] = in_use;
        super::super::Cpu::set_xstate(&mut cpu, &state).unwrap();
        let before = cpu.xstate.clone();
        done(&mut cpu, &[0x48, 0x0f, 0xc7, 0x23]);
        cpu.xstate = with_state().xstate;
        done(&mut cpu, XRSTORS64);
        for range in [0..416, 512..LEN] {
            assert!(cpu.xstate[range.clone()] == before[range.clone()], "{in_use:#x}: {range:?} differs");
        }
    }
}

#[test]
fn components_not_requested_keep_their_registers() {
    let mut cpu = with_area();
    cpu.set(RAX, 4);
    let before = restored(&mut cpu, XRSTOR64);
    assert!(cpu.xstate[..24] == before[..24] && cpu.xstate[32..416] == before[32..416]);
    assert!(cpu.xstate[576..0x340] == area(&cpu)[576..0x340]);
    assert!(cpu.xstate[0x340..] == before[0x340..]);
    assert_eq!(cpu.xstate[512], 0xe7);
}

#[test]
fn requested_components_that_the_area_lacks_become_initial() {
    let mut cpu = with_area();
    cpu.put(DATA + 512, &[0x02]);
    restored(&mut cpu, XRSTOR64);
    let initial = FakeCpu::long_mode().xstate;
    assert!(cpu.xstate[..24] == initial[..24] && cpu.xstate[32..160] == initial[32..160]);
    assert!(cpu.xstate[160..416] == area(&cpu)[160..416]);
    assert!(cpu.xstate[576..].iter().all(|&byte| byte == 0));
    assert_eq!(cpu.xstate[512], 2);
}

#[test]
fn the_standard_form_loads_mxcsr_even_if_the_xmm_registers_become_initial() {
    // The hypervisor takes MXCSR only with its component: this one must not get lost.
    let mut cpu = with_area();
    cpu.put(DATA + 512, &[0]);
    restored(&mut cpu, XRSTOR64);
    assert_eq!(mxcsr(&cpu), 0x1fa0);
    assert!(cpu.xstate[160..416].iter().all(|&byte| byte == 0));
}

#[test]
fn the_standard_form_of_avx_alone_loads_mxcsr() {
    let mut cpu = with_area();
    cpu.set(RAX, 4);
    restored(&mut cpu, XRSTOR64);
    assert_eq!(mxcsr(&cpu), 0x1fa0);
}

#[test]
fn x87_alone_leaves_mxcsr() {
    let mut cpu = with_area();
    cpu.set(RAX, 1);
    restored(&mut cpu, XRSTOR64);
    assert_eq!(mxcsr(&cpu), 0x9fc0);
}

#[test]
fn an_mxcsr_that_is_initial_again_is_set() {
    let mut cpu = with_area();
    cpu.put(DATA + 24, &0x1f80_u32.to_le_bytes());
    cpu.put(DATA + 512, &[0]);
    restored(&mut cpu, XRSTOR64);
    assert_eq!((mxcsr(&cpu), cpu.xstate[512]), (0x1f80, 0));
}

#[test]
fn reserved_bits_of_mxcsr_are_a_protection_fault() {
    let mut cpu = with_area();
    cpu.put(DATA + 24, &0x4_1f80_u32.to_le_bytes());
    faults(&mut cpu, XRSTOR64, protection());
    // They are not looked at where MXCSR is not loaded.
    cpu.injected.clear();
    cpu.set(RAX, 1);
    done(&mut cpu, XRSTOR64);
}

#[test]
fn the_short_form_loads_32_bits_of_the_pointers() {
    let mut cpu = with_area();
    restored(&mut cpu, XRSTOR);
    assert!(cpu.xstate[8..12] == area(&cpu)[8..12] && cpu.xstate[16..20] == area(&cpu)[16..20]);
    assert_eq!((&cpu.xstate[12..16], &cpu.xstate[20..24]), ([0; 4].as_slice(), [0; 4].as_slice()));
}

#[test]
fn a_bad_standard_header_is_a_protection_fault() {
    // (offset in the header, byte)
    for (at, byte) in
        [(0, 0x08), (0, 0xff), (1, 0x01), (7, 0x80), (8, 0x01), (14, 0x01), (16, 0x01), (23, 0x80)]
    {
        let mut cpu = with_area();
        cpu.put(DATA + 512 + at, &[byte]);
        faults(&mut cpu, XRSTOR64, protection());
    }
}

#[test]
fn a_standard_header_may_name_only_what_xcr0_enables() {
    let mut cpu = with_area();
    cpu.xcr0 = 7;
    // Even where nothing of it is requested.
    cpu.set(RAX, 1);
    faults(&mut cpu, XRSTOR64, protection());
}

#[test]
fn the_rest_of_a_standard_header_is_ignored() {
    let mut cpu = with_area();
    cpu.put(DATA + 512 + 24, &[0xff; 40]);
    restored(&mut cpu, XRSTOR64);
}

/// An area in the compacted form with components 0, 1, 2 and 7, of which `in_use` are there.
fn with_compacted(in_use: u8) -> FakeCpu {
    let mut cpu = with_area();
    cpu.put(DATA + 512, &[in_use, 0, 0, 0, 0, 0, 0, 0, 0x87, 0, 0, 0, 0, 0, 0, 0x80]);
    cpu
}

#[test]
fn the_compacted_form_finds_its_components() {
    let mut cpu = with_compacted(0x84);
    restored(&mut cpu, XRSTOR64);
    assert!(cpu.xstate[576..0x340] == area(&cpu)[576..0x340]);
    assert!(cpu.xstate[0x580..0x980] == area(&cpu)[0x340..0x740]);
    // Not in the area, so initial: the masks, the upper halves, the XMM registers and with them MXCSR.
    assert!(cpu.xstate[0x340..0x580].iter().all(|&byte| byte == 0));
    assert!(cpu.xstate[160..416].iter().all(|&byte| byte == 0));
    assert_eq!((mxcsr(&cpu), cpu.xstate[512]), (0x1f80, 0x84));
}

#[test]
fn the_compacted_form_aligns_where_cpuid_says_so() {
    let layout = XstateLayout::from_cpuid(0x607, |index| match index {
        2 => [0x100, 0x240, 0],
        9 => [8, 0x340, 0],
        _ => [64, 0x380, 2],
    })
    .unwrap();
    let (offsets, end) = layout.compacted(0x607);
    assert_eq!((offsets[9], offsets[10], end), (0x340, 0x380, 0x3c0));
    let (offsets, end) = layout.compacted(0x201);
    assert_eq!((offsets[9], end), (0x240, 0x248));
}

#[test]
fn a_bad_compacted_header_is_a_protection_fault() {
    for (at, byte) in [(0, 0x20), (0, 0x08), (7, 0x80), (8, 0x8f), (10, 1), (16, 1), (40, 1), (63, 0x80)] {
        let mut cpu = with_compacted(0x84);
        cpu.put(DATA + 512 + at, &[byte]);
        faults(&mut cpu, XRSTOR64, protection());
    }
}

#[test]
fn xrstors_takes_only_the_compacted_form() {
    faults(&mut with_area(), XRSTORS64, protection());
    done(&mut with_compacted(0x87), XRSTORS64);
}

#[test]
fn an_area_off_its_alignment_is_a_protection_fault() {
    let mut cpu = with_area();
    cpu.set(RBX, DATA + 16);
    faults(&mut cpu, XRSTOR64, protection());
}

#[test]
fn a_page_that_is_missing_faults_and_restores_nothing() {
    let mut cpu = with_area();
    let area = area(&cpu).to_vec();
    cpu.put(DATA + 0xc00, &area[..0x400]);
    cpu.map(DATA + 0x1000, 0);
    cpu.set(RBX, DATA + 0xc00);
    faults(&mut cpu, XRSTOR64, Event::PageFault { address: DATA + 0x1000, error_code: 0 });
}

#[test]
fn outside_64_bit_mode_the_upper_registers_stay() {
    let mut cpu = with_area();
    cpu.sregs.cr0 = super::super::cr0::PE;
    cpu.sregs.efer = 0;
    (cpu.sregs.cs.long, cpu.sregs.cs.big) = (false, true);
    cpu.put(DATA + 512, &[0x02]);
    let before = restored(&mut cpu, XRSTOR);
    assert!(cpu.xstate[160..288] == area(&cpu)[160..288] && cpu.xstate[288..416] == before[288..416]);
    assert!(cpu.xstate[576..0x2c0].iter().all(|&byte| byte == 0));
    assert!(cpu.xstate[0x2c0..0x340] == before[0x2c0..0x340]);
    assert!(cpu.xstate[0x580..] == before[0x580..]);
}

#[test]
fn state_that_xcr0_hides_survives() {
    // The hypervisor's image may hold more than the guest enabled.
    let mut cpu = with_area();
    cpu.xcr0 = 7;
    cpu.put(DATA + 512, &[7]);
    let before = restored(&mut cpu, XRSTOR64);
    assert!(cpu.xstate[0x340..] == before[0x340..]);
    assert_eq!(cpu.xstate[512], 0xe7);
}

#[test]
fn components_that_cannot_be_are_refused() {
    for bad in [[0, 0x240, 0], [0x100, 0x200, 0], [0x100, 0xffff_ff80, 0], [0xffff_ffff, 0x240, 0]] {
        let error = XstateLayout::from_cpuid(7, |_| bad).unwrap_err();
        assert_eq!((error.component, error.size, error.offset), (2, bad[0], bad[1]));
    }
}

#[test]
fn the_layout_of_avx_512_is_as_long_as_cpuid_says() {
    assert_eq!(layout_with_avx512().len(), LEN);
    assert_eq!(XstateLayout::from_cpuid(3, |_| [0; 3]).unwrap().len(), 576);
}
