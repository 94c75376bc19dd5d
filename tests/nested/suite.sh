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
# Images and a registry of Debian packages, for the programs that want them.
images=$(tests/images/build.sh) || exit 1
with_images=(--env "SERVIN_TEST_IMAGES=$images")
case $images in skipped:*) ;; *) with_images=(--env SERVIN_TEST_IMAGES=/images --add "$images:/images") ;; esac
[ -n "$vmm" ] && [ -n "$embedding" ] && [ -n "$machines" ] || { echo 'the test programs were not built'; exit 1; }

# ---- lanes: a nested host keeps one CPU busy, so several run side by side, each saying nothing until it is done -------
lanes=$(nproc)
room=$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo) / 5242880)) # 5 GiB for each
[ "$lanes" -le "$room" ] || lanes=$room
[ "$lanes" -ge 1 ] || lanes=1
[ "$lanes" -le 4 ] || lanes=4
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'kill $(jobs -p) 2>/dev/null; exit 143' TERM INT HUP
status=0
declare -A titles=() # by process

settle() { # waits until one lane is free, and shows what was said there
  local pid code=0
  wait -n -p pid || code=$?
  [ -n "${pid:-}" ] || return 0
  echo "== ${titles[$pid]}"
  cat "$work/$pid"
  [ $code = 0 ] || { echo "== ${titles[$pid]}: exit code $code"; status=1; }
  rm -f "$work/$pid"
  unset "titles[$pid]"
  [ ${#titles[@]} = 0 ] || echo "   (under way: ${titles[*]})"
}
lane() { # TITLE COMMAND...
  local title=$1 pid
  shift
  while [ ${#titles[@]} -ge "$lanes" ]; do settle; done
  # The process writes under its own number, which is known only then.
  bash -c 'exec >"$1/$$" 2>&1; shift; exec "$@"' - "$work" "$@" </dev/null &
  pid=$!
  titles[$pid]=$title
}
host() { # TITLE TIMEOUT ARGS...: what the nested host is to run
  local title=$1 limit=$2
  shift 2
  lane "$title" "$here/run.sh" --timeout "$limit" "$@"
}

# A distribution's own kernel, unchanged, is a guest like any other. Its PID 1 ends, so that it panics and resets.
stock() {
  local image tmp boot
  image=$("$here/image.sh") && tmp=$(mktemp -d -p "$work") || return 1
  boot=$target/debug/examples/boot
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
  else
    tail -n 30 "$tmp/out"
    echo '0 passed, 1 failed, 0 skipped'
    return 1
  fi
}
rootless() {
  if "$here/run.sh" --user --timeout 200 --mem 3072 --env "SERVIN_GUEST_DIR=$root/target/guest" \
    --add "$servin" --add "$root/target/guest" --add "$here/rootless.sh:/rootless.sh" -- /bin/busybox sh /rootless.sh "$servin"; then
    echo '1 passed, 0 failed, 0 skipped'
  else
    echo '0 passed, 1 failed, 0 skipped'
    return 1
  fi
}
export -f stock rootless
export here work target servin root

# ---- what runs, the longest first, so that no lane is left alone with one in the end --------------------------------
tests/guest/build.sh "$work/programs" || exit 1
long=(killed snapshot images cli warm disk restored build lineage shared_network network registry)
ordered() {
  local program name rank i
  for program in $machines; do
    name=$(basename "${program%-*}") rank=${#long[@]}
    for i in "${!long[@]}"; do [ "${long[$i]}" != "$name" ] || rank=$i; done
    echo "$rank $program"
  done | sort -n | cut -d' ' -f2
}
for program in $(ordered); do
  name=$(basename "${program%-*}") more=()
  case $name in images | registry) more=("${with_images[@]}") ;; esac
  host "$name" 1200 ${more[@]+"${more[@]}"} --mem 3072 --disk 2048 --cwd /disk --env TMPDIR=/disk \
    --env "SERVIN_BIN=$servin" --env "SERVIN_GUEST_DIR=$root/target/guest" --env SERVIN_TEST_PROGRAMS=/programs \
    --add "$servin" --add "$root/target/guest" --add "$work/programs:/programs" \
    -- "$program" --test-threads 1 --show-output ${1+"$@"}
done
if [ $# = 0 ]; then
  # The decoders' mutants have no hypervisor under them: they ran with the unit tests, where their corpus is.
  host 'the hypervisor contract on kvm-amd' 300 --mem 3072 -- "$vmm" --test-threads 1 --show-output hv:: --skip hv::mutants
  for program in $embedding; do
    host "the embedding API: $(basename "${program%-*}")" 300 --mem 3072 -- "$program" --test-threads 1 --show-output
  done
  if cargo build -q --locked -p servin-vmm --example boot; then
    lane "Debian's cloud kernel as a guest" bash -c stock
  else
    status=1
  fi
  lane 'a container without root' bash -c rootless
fi
while [ ${#titles[@]} -gt 0 ]; do settle; done
exit $status
