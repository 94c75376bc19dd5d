#!/bin/bash
# The whole-machine tests in the nested host: the same test programs that run on the machine's own /dev/kvm. Wanted
# before: target/guest and the release build of servin (`make test` sees to both).
#
#   tests/nested/suite.sh [TEST-NAME-PART]
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root" || exit 2
target=${CARGO_TARGET_DIR:-$root/target}
servin=$target/release/servin
[ -x "$servin" ] || { echo "no $servin: cargo build --release -p servin"; exit 1; }
[ -f target/guest/vmlinux ] || { echo 'no guest kernel: make guest'; exit 1; }

# The test programs of one crate: its unit tests (lib) or its whole-machine tests (test).
programs() { # SOURCE-FOLDER KIND
  cargo test --workspace --locked --no-run --message-format json 2>/dev/null | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        target = message["target"]
        if sys.argv[2] in target["kind"] and target["src_path"].startswith(sys.argv[1]):
            print(message["executable"])' "$root/$1/" "$2"
}
vmm=$(programs vmm/src lib) || exit 1
embedding=$(programs vmm/tests test) || exit 1
machines=$(programs tests/tests test) || exit 1
[ -n "$vmm" ] && [ -n "$embedding" ] && [ -n "$machines" ] || { echo 'the test programs were not built'; exit 1; }

status=0
run() { # TITLE TIMEOUT ARGS...
  local title=$1 limit=$2
  shift 2
  echo "== $title"
  "$here/run.sh" --timeout "$limit" "$@" || { echo "== $title: exit code $?"; status=1; }
}
if [ $# = 0 ]; then
  # The decoders' mutants have no hypervisor under them: they ran with the unit tests, where their corpus is.
  run 'the hypervisor contract on kvm-amd' 300 --mem 3072 -- "$vmm" --test-threads 1 --show-output hv:: --skip hv::mutants
  for program in $embedding; do
    run "the embedding API: $(basename "${program%-*}")" 300 --mem 3072 -- "$program" --test-threads 1 --show-output
  done
fi

# A distribution's own kernel, unchanged, is a guest like any other. Its PID 1 ends, so that it panics and resets.
stock() {
  local image tmp boot
  image=$("$here/image.sh") && tmp=$(mktemp -d) || return 1
  boot=$target/debug/examples/boot
  cargo build -q --locked -p servin-vmm --example boot || return 1
  mkdir -p "$tmp/root/bin" "$tmp/root/proc"
  cp "$image/busybox" "$tmp/root/bin/"
  printf '%s\n' '#!/bin/busybox sh' '/bin/busybox mount -t proc proc /proc' \
    'echo "the kernel $(/bin/busybox uname -r) has reached PID 1"' >"$tmp/root/init"
  chmod +x "$tmp/root/init"
  (cd "$tmp/root" && find . | "$image/busybox" cpio -o -H newc -R 0:0) >"$tmp/initrd" 2>/dev/null
  "$here/run.sh" --timeout 200 --add "$image/vmlinuz:/kernel" --add "$tmp/initrd:/initrd" -- \
    "$boot" /kernel --initramfs /initrd --mem 256 --serial --append 'console=ttyS0 quiet panic=-1' >"$tmp/out" 2>&1
  if grep -q "^the kernel .*cloud.* has reached PID 1" "$tmp/out" && grep -q '^Reset' "$tmp/out"; then
    echo '1 passed, 0 failed, 0 skipped'
    rm -rf "$tmp"
  else
    tail -n 30 "$tmp/out"
    echo '0 passed, 1 failed, 0 skipped'
    rm -rf "$tmp"
    return 1
  fi
}
if [ $# = 0 ]; then
  echo "== Debian's cloud kernel as a guest"
  stock || status=1
fi

if [ $# = 0 ]; then
  echo '== a container without root'
  if "$here/run.sh" --user --timeout 200 --mem 3072 --env "SERVIN_GUEST_DIR=$root/target/guest" \
    --add "$servin" --add "$root/target/guest" --add "$here/rootless.sh:/rootless.sh" -- /bin/busybox sh /rootless.sh "$servin"; then
    echo '1 passed, 0 failed, 0 skipped'
  else
    echo '0 passed, 1 failed, 0 skipped'
    status=1
  fi
fi

guest_programs=$(mktemp -d)
trap 'rm -rf "$guest_programs"' EXIT
tests/guest/build.sh "$guest_programs" || exit 1
for program in $machines; do
  run "$(basename "${program%-*}")" 900 --mem 3072 --disk 2048 --cwd /disk --env TMPDIR=/disk \
    --env "SERVIN_BIN=$servin" --env "SERVIN_GUEST_DIR=$root/target/guest" --env SERVIN_TEST_PROGRAMS=/programs \
    --add "$servin" --add "$root/target/guest" --add "$guest_programs:/programs" \
    -- "$program" --test-threads 1 --show-output ${1+"$@"}
done
exit $status
