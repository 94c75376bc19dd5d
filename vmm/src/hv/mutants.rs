//! The corpus of the decoders' fuzz targets with bytes changed at random: breadth on every test run, where the replay of the
//! corpus itself only keeps what was found before.

use std::path::Path;

/// A small generator, the same on each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Each input of `corpus/TARGET` and `count` mutants of them.
fn run(target: &str, count: usize, check: fn(&[u8])) {
    // Cargo says it at run time, too: a program that another checkout built is taken for ours if it shares the target folder.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let folder = Path::new(&here).join("../fuzz/corpus").join(target);
    let mut inputs: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    let inputs: Vec<_> = inputs.into_iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(inputs.len() > 10);
    inputs.iter().for_each(|input| check(input));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for turn in 0..count {
        let mut input = inputs[turn % inputs.len()].clone();
        for _ in 0..random.next() % 8 {
            let at = random.next() as usize % input.len();
            match random.next() % 4 {
                0 => input[at] ^= 1 << (random.next() % 8),
                1 => input[at] = random.next() as u8,
                2 => input.truncate(at.max(1)),
                _ => {
                    let other = &inputs[random.next() as usize % inputs.len()];
                    input.extend_from_slice(other);
                }
            }
        }
        check(&input);
    }
}

#[test]
fn no_access_breaks_a_rule() {
    run("access", 4000, super::x86::testing::fuzz_access);
}

#[test]
fn no_exit_of_whp_breaks_a_rule() {
    run("whp", 600, super::whp::testing::fuzz_exits);
}

#[test]
fn no_use_of_the_gic_breaks_a_rule() {
    run("gic", 4000, super::arm64::fuzzing::fuzz);
}

#[test]
fn no_exit_of_hvf_breaks_a_rule() {
    run("hvf", 400, super::hvf::testing::fuzz_exits);
}

#[test]
fn no_exit_of_vmx_breaks_a_rule() {
    run("vmx", 400, super::hvf::vmx::testing::fuzz_exits);
}
