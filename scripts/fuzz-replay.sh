#!/bin/bash
# Runs every input of fuzz/corpus/TARGET through its fuzz target, and every input of fuzz/regressions/TARGET that once
# was a finding. The targets are built by the stable compiler, without the coverage that only a search needs, but with
# debug assertions: an overflow is a finding.
#
#   scripts/fuzz-replay.sh [TARGET...]
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ -f fuzz/Cargo.toml ] || { echo 'there is no fuzz/Cargo.toml'; exit 1; }
command -v g++ >/dev/null || packages g++ || exit 1
export CARGO_TARGET_DIR=$target/fuzz-replay RUSTFLAGS='-Cdebug-assertions=on'
cargo build --release --locked --manifest-path fuzz/Cargo.toml --bins || exit 1
[ $# -gt 0 ] || mapfile -t all < <(cargo metadata --no-deps --offline --format-version 1 --manifest-path fuzz/Cargo.toml |
  python3 -c 'import json, sys
for package in json.load(sys.stdin)["packages"]:
    for target in package["targets"]:
        if "bin" in target["kind"]: print(target["name"])')
[ $# -gt 0 ] || set -- "${all[@]}"

passed=0 failed=0 skipped=0
for name; do
  folders=()
  for folder in "fuzz/corpus/$name" "fuzz/regressions/$name"; do
    [ -z "$(ls -A "$folder" 2>/dev/null)" ] || folders+=("$folder")
  done
  if [ ${#folders[@]} = 0 ]; then
    echo "FAIL $name: it has no corpus"
    failed=$((failed + 1))
    continue
  fi
  count=$(find "${folders[@]}" -type f | wc -l)
  work=$(mktemp -d)
  started=$(now)
  if (cd "$work" && timeout 180 "$CARGO_TARGET_DIR/release/$name" -runs=0 -timeout=20 -rss_limit_mb=3000 \
    "${folders[@]/#/$root/}") >"$work/log" 2>&1; then
    echo "ok   $name: $count inputs in $(span $(($(now) - started)))"
    passed=$((passed + 1))
  else
    echo "FAIL $name: $count inputs"
    tail -n 40 "$work/log" | sed 's/^/    | /'
    failed=$((failed + 1))
  fi
  rm -rf "$work"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] && [ $passed -gt 0 ]
