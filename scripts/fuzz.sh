#!/usr/bin/env bash
# Fuzzes: scripts/fuzz.sh [TARGET...] [-- LIBFUZZER OPTIONS], each target for $SECONDS_EACH seconds (60) on one core.
#
# The sanitizer's coverage needs compiler flags that the stable toolchain takes with RUSTC_BOOTSTRAP=1, so nothing
# beside the toolchain is installed; cargo fuzz works in this tree as well. New inputs are kept in fuzz/corpus after
# they were reduced to what adds coverage; a finding ends in fuzz/artifacts and fails the script.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
targets=(); while [ $# -gt 0 ] && [ "$1" != -- ]; do targets+=("$1"); shift; done
[ $# -eq 0 ] || shift
[ ${#targets[@]} -gt 0 ] || targets=($(cd fuzz/fuzz_targets && ls | sed 's/\.rs$//'))
seconds=${SECONDS_EACH:-60}
triple=$(rustc -vV | sed -n 's/^host: //p')
out=${CARGO_TARGET_DIR:-fuzz/target}
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$out CARGO_INCREMENTAL=0
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Zsanitizer=address --cfg fuzzing"
echo "==> building the fuzz targets"
cargo build --manifest-path fuzz/Cargo.toml --release --features fuzzing --bins --target "$triple"
for target in "${targets[@]}"; do
  echo "==> $target for $seconds s"
  work=$(mktemp -d); mkdir -p "fuzz/corpus/$target" fuzz/artifacts
  "$out/$triple/release/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1 \
    -artifact_prefix="fuzz/artifacts/$target-" "$@" "$work" "fuzz/corpus/$target" 2>&1 | grep -E "Done|ERROR|panicked|cov:|stat::|artifact" | grep -vE "NEW|REDUCE|pulse|RELOAD" | tail -25
  [ "${PIPESTATUS[0]}" -eq 0 ] || { echo "$target: a finding in fuzz/artifacts"; exit 1; }
  # Keep a small corpus: inputs of at most 1 KiB that add coverage.
  merged=$(mktemp -d)
  "$out/$triple/release/$target" -merge=1 -max_len=1024 "$merged" "fuzz/corpus/$target" "$work" >/dev/null 2>&1
  rm -rf "fuzz/corpus/$target" && cp -r "$merged" "fuzz/corpus/$target" && rm -rf "$work" "$merged"
  echo "$target: no finding, $(ls "fuzz/corpus/$target" | wc -l) inputs kept"
done
