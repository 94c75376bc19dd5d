//! Instructions that a hypervisor's emulator may lack: where the CPU executes them and where the assist does, a guest sees
//! the same. Only on this host's hypervisor: the fake has no instructions.

use vm_memory::{Bytes, GuestAddress};

use super::rig::Bench;
use super::x86;

/// Where the program leaves what it found, and its areas for XRSTOR and XSAVE.
const FOUND: u64 = 0x3_0000;
const LOADED: u64 = 0x3_1000;
const SAVED: u64 = 0x3_2000;
/// An area with x87, SSE and AVX.
const AREA: usize = 832;

#[test]
fn seldom_instructions_do_what_the_cpu_does() {
    Bench::host(|bench| {
        if !std::arch::is_x86_feature_detected!("avx") {
            println!("skipped: this CPU has no AVX");
            return;
        }
        let mut test = bench.machine(1, x86::seldom(), |_| {});
        let area: Vec<u8> = (0..AREA).map(pattern).collect();
        test.mem.write_slice(&area, GuestAddress(LOADED)).unwrap();
        let mut io = test.recorder();
        test.run_until_done(&mut io);

        let found = |at| test.mem.read_obj::<u64>(GuestAddress(FOUND + at)).unwrap();
        assert_eq!(found(0), 9, "popcnt");
        assert_eq!(found(8) & 0x8d5, 0, "the flags of popcnt");
        assert_eq!((found(0x10), found(0x18)), (0, 0), "cmpxchg16b loads when different");
        assert_eq!(found(0x20), 1, "cmpxchg16b sets the zero flag when equal");
        assert_eq!((found(0x80), found(0x88)), (3, 4), "cmpxchg16b stores when equal");
        assert_eq!((found(0x40), found(0x48)), (0, 1), "int3 returns behind itself, once");
        assert_eq!((found(0x50), found(0x58)), (0, 1), "int n returns behind itself, once");
        if bench.caps().variant.is_none() && found(0x28) == 1 {
            // QEMU 7.2's TCG as the CPU does not intercept XSETBV, and the next exit loses what it set.
            println!("skipped: XSETBV has no effect on this CPU, so neither have XRSTOR and XSAVE");
            return;
        }
        assert_eq!(found(0x28), 7, "xgetbv");

        let mut saved = vec![0; AREA];
        test.mem.read_slice(&mut saved, GuestAddress(SAVED)).unwrap();
        // Not the x87 pointers, which CPUs treat differently, and not MXCSR_MASK, which is the CPU's own.
        for range in [0..6, 24..28, 160..416, 512..576, 576..832] {
            assert_eq!(saved[range.clone()], area[range.clone()], "bytes {range:?} of the area");
        }
        for register in 0..8 {
            let at = 32 + 16 * register;
            assert_eq!(saved[at..at + 10], area[at..at + 10], "x87 register {register}");
        }
    });
}

/// A valid area, every register different.
fn pattern(at: usize) -> u8 {
    match at {
        // FCW, FSW, tags (all valid), MXCSR, XSTATE_BV.
        0 => 0x7f,
        1 => 0x03,
        4 => 0xff,
        25 => 0x3f,
        24 => 0x80,
        512 => 7,
        2..32 | 513..576 => 0,
        // The upper six bytes of each x87 register's place are reserved.
        32..160 if (at - 32) % 16 >= 10 => 0,
        _ => (at % 249 + at / 249) as u8,
    }
}
