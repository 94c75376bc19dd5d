use super::super::testing::fuzz_assist;

/// A small generator: the point is breadth on every run, not secrecy.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The opcodes that are assisted, for random operands and prefixes around them.
const OPCODES: &[&[u8]] = &[
    &[0xcc],
    &[0xcd],
    &[0x0f, 0xb8],
    &[0x0f, 0xc7],
    &[0x0f, 0xae],
    &[0x0f, 0x01],
    &[0x0f, 0x00],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x38, 0xf0],
    &[0x0f, 0x38, 0xf1],
    &[0x0f, 0x38, 0xf6],
    &[0x0f, 0x38, 0x82],
    &[0x0f, 0x38, 0x2a],
    &[0x0f, 0x6e],
    &[0x0f, 0x7e],
    &[0x0f, 0xd6],
    &[0x0f, 0xef],
    &[0x0f, 0x57],
    &[0x0f, 0x77],
    &[0xc4, 0xe2],
    &[0xc4, 0xe3],
    &[0xdb],
    &[0xdd],
    &[0xdf],
    &[0x9b],
    &[0x0f, 0x1e],
];

#[test]
fn random_instructions_on_random_state_break_no_rule() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..4000_usize {
        let mut input: Vec<u8> = (0..96).flat_map(|_| random.next().to_le_bytes()).collect();
        let opcode = OPCODES[round % OPCODES.len()];
        let prefix =
            [0x66, 0xf2, 0xf3, 0xf0, 0x64, 0x67, 0x48, 0x4f].get(random.next() as usize % 16).copied();
        let code: Vec<u8> = prefix.into_iter().chain(opcode.iter().copied()).collect();
        input[2..2 + code.len()].copy_from_slice(&code);
        fuzz_assist(&input);
    }
}

#[test]
fn short_inputs_break_no_rule() {
    for len in 0..40 {
        fuzz_assist(&vec![2; len]);
        fuzz_assist(&vec![0xff; len]);
    }
}
