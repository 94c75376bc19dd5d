#!/usr/bin/env bash
# Every input of fuzz/corpus through its fuzz target, on the ordinary toolchain with debug assertions: each target is
# also an ordinary function, and the replay an ordinary test.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
CARGO_TARGET_DIR=$target/fuzz-replay cargo test --manifest-path fuzz/Cargo.toml --lib --locked
