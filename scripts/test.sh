#!/bin/bash
# Everything that CI proves, stage by stage, each with its own deadline; a table of the stages and a closing line
# `N passed, N failed, N skipped` at the end. A test that needs what this machine lacks prints `skipped: REASON`
# and is counted; without a reason to skip (there is a /dev/kvm) such a test is a failure.
#
#   scripts/test.sh                all of it
#   scripts/test.sh STAGE...       some of: lint guest unit fuzz machine nested cross arm64
#   scripts/test.sh :NAME          one stage's command, without deadline or log (used by this script itself)
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
self=$root/scripts/test.sh

# ---- what a stage does ----------------------------------------------------------------------------------------
manifests() { # the workspaces of this repository
  local dir
  for dir in . initramfs/agent fuzz; do [ ! -f "$dir/Cargo.toml" ] || echo "$dir/Cargo.toml"; done
}
nextest() { "$(scripts/tool.sh cargo-nextest)" nextest "$@"; }

case ${1:-} in
  :packages)
    packages "${packages_build[@]}" "${packages_guest[@]}" "${packages_nested[@]}" "${packages_tests[@]}" \
      "${packages_arm64[@]}" "${packages_tools[@]}" ;;
  :tools) scripts/tool.sh cargo-deny && scripts/tool.sh cargo-nextest ;;
  :format)
    status=0
    for manifest in $(manifests); do cargo fmt --all --manifest-path "$manifest" --check || status=1; done
    exit $status ;;
  :clippy)
    cargo clippy --workspace --all-targets --all-features --locked -- -D warnings || exit 1
    if [ -f initramfs/agent/Cargo.toml ]; then
      (cd initramfs/agent && cargo clippy --locked -- -D warnings) || exit 1
    fi ;;
  :licenses) "$(scripts/tool.sh cargo-deny)" --all-features check licenses bans sources ;;
  :build-tests) nextest run --workspace --locked --no-run && nextest run -p servin-devices --features own-queue --locked --no-run ;;
  :unit)
    status=0
    nextest run --workspace --locked --filterset 'not (package(servin-tests) & kind(test))' || status=1
    # The devices once more, on the rings that Windows has.
    nextest run -p servin-devices --features own-queue --locked virtio || status=1
    [ ! -f initramfs/agent/Cargo.toml ] || (cd initramfs/agent && cargo test --locked --lib) || status=1
    exit $status ;;
  :doc) cargo test --doc --workspace --locked ;;
  :servin) cargo build --release --locked -p servin -p servin-benches ;;
  :fuzz) scripts/fuzz-replay.sh ;;
  :images) tests/images/build.sh ;;
  :machine) nextest run --workspace --locked --filterset 'package(servin-tests) & kind(test)' ;;
  :nested) tests/nested/suite.sh ;;
  :budget) RUNS=3 scripts/bench.sh :boot ;;
  :nested-host) tests/nested/selftest.sh ;;
  :cross) scripts/cross-check.sh ;;
  :kernel-arm64) SERVIN_ARCH=aarch64 guest-kernel/build.sh ;;
  :guest-arm64) SERVIN_ARCH=aarch64 initramfs/build.sh && SERVIN_ARCH=aarch64 engine/base/build.sh ;;
  :arm64) tests/nested/arm64.sh ;;
  :*) echo "no stage $1"; exit 2 ;;
esac
case ${1:-} in :*) exit ;; esac

# ---- which stages ---------------------------------------------------------------------------------------------
[ $# -gt 0 ] || set -- lint guest unit fuzz machine nested cross arm64
stages=('packages|900|:packages' 'tools|600|:tools')
for stage; do
  case $stage in
    lint) stages+=('format|120|:format' 'clippy|1500|:clippy' 'licenses|300|:licenses') ;;
    unit) stages+=('build the tests|1800|:build-tests' 'unit tests, fake and /dev/kvm|900|:unit' 'doc tests|600|:doc') ;;
    guest) stages+=('guest kernel|3000|guest-kernel/build.sh' 'agent and initramfs|900|initramfs/build.sh'
      'base image|300|engine/base/build.sh' 'servin|1800|:servin') ;;
    fuzz) [ ! -d fuzz ] || stages+=('fuzz corpus replay|900|:fuzz') ;;
    machine) stages+=('guest kernel under emulation|400|guest-kernel/boot-test/run.sh'
      'images of Debian packages|900|:images' 'whole machines on /dev/kvm|900|:machine') ;;
    nested) stages+=('the nested host itself|400|:nested-host' 'whole machines in the nested host|2400|:nested'
      'boot within its budget of instructions|600|:budget') ;;
    cross) stages+=('other targets|2400|:cross') ;;
    arm64) stages+=('guest kernel for arm64|3000|:kernel-arm64' 'agent and base image for arm64|900|:guest-arm64'
      'whole machines on an emulated arm64 host|1800|:arm64') ;;
    *) echo "unknown stage $stage (known: lint guest unit fuzz machine nested cross arm64)"; exit 2 ;;
  esac
done

# In CI the build output is kept between runs, unless another run has it in hand.
if [ "${CI:-}" = true ] && [ -z "${CARGO_TARGET_DIR:-}" ]; then
  exec 7>"$cache/ci-target.lock"
  if flock -n 7; then
    export CARGO_TARGET_DIR=$cache/ci-target
    own_build_output "$CARGO_TARGET_DIR" 12000
    target=$CARGO_TARGET_DIR
  fi
fi

passed=0 failed=0 skipped=0
reasons=$logs/skips
: >"$reasons"

# Counts what a stage's log says: nextest, libtest, or the plain closing line; else the stage is one check.
tally() { # LOG STATUS NAME
  local p f s skips
  read -r p f s < <(awk '
    /^ *Summary \[/ { seen = 1
      for (i = 2; i <= NF; i++) { w = $i; sub(/,$/, "", w)
        if (w == "passed") p += $(i - 1); if (w == "failed") f += $(i - 1); if (w == "skipped") s += 0
        if (w == "timed") f += $(i - 1); if (w == "exec") f += $(i - 1) } }
    /^test result: / { seen = 1; p += $4; f += $6; s += $8 }
    /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { seen = 1; p += $1; f += $3; s += $5 }
    END { if (!seen) print "- - -"; else print p + 0, f + 0, s + 0 }' "$1")
  if [ "$p" = - ]; then p=$(($2 == 0)) f=$(($2 != 0)) s=0; fi
  skips=$(grep -cE '^ *skipped: ' "$1" || true)
  sed -nE "s/^ *(skipped|not covered): //p" "$1" >>"$reasons"
  [ "$skips" -le "$p" ] || skips=$p
  p=$((p - skips)) s=$((s + skips))
  [ "$2" = 0 ] || [ "$f" -gt 0 ] || f=1
  if [ -c /dev/kvm ] && grep -qE '^ *skipped: no hypervisor' "$1"; then
    printf '    FAILED: tests of %s were skipped for want of a hypervisor, but there is a /dev/kvm\n' "$3"
    f=$((f + 1))
  fi
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  printf '    %d passed, %d failed, %d skipped here\n' "$p" "$f" "$s"
}

steps_total=${#stages[@]}
began=$(now)
for line in "${stages[@]}"; do
  IFS='|' read -r name limit command <<<"$line"
  case $command in :*) command="$self $command" ;; esac
  status=0
  # shellcheck disable=SC2086
  step "$name" "$limit" $command || status=$?
  log=$logs/$(tr -c 'a-zA-Z0-9\n' '-' <<<"$name").log
  tally "$log" "$status" "$name"
  [ $status = 0 ] || case $name in packages | tools) break ;; esac
done

printf '\n'
printf '%s\n' "${steps_table[@]}"
printf 'all of it took %s\n' "$(span $(($(now) - began)))"
if [ -s "$reasons" ]; then
  printf 'skipped because:\n'
  sort "$reasons" | uniq -c | sort -rn | head -20
fi
printf '%d passed, %d failed, %d skipped\n' $passed $failed $skipped
[ $failed = 0 ] && [ $passed -gt 0 ]
