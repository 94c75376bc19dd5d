#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Boots target/guest/vmlinux under QEMU's TCG, without the monitor, to a busybox userland, and checks what a
# container needs of it: about half a minute. The monitor's own tests boot it under KVM.
#
#   guest-kernel/boot-test/run.sh [VMLINUX]        (System.map beside it)
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kernel=${1:-$(dirname "$(dirname "$here")")/target/guest/vmlinux}
say() { echo "boot-test: $*"; }
fail() { say "error: $*" >&2; exit 1; }
for tool in qemu-system-x86_64:qemu-system-x86 cpio:cpio gcc:gcc busybox:busybox-static; do
  command -v "${tool%%:*}" >/dev/null || fail "missing ${tool%%:*}: apt-get install ${tool#*:}"
done
[ -f "$kernel" ] || fail "there is no $kernel: make guest"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/root"/{bin,dev,proc,sys,tmp}
cp "$(command -v busybox)" "$tmp/root/bin/busybox"
cp "$here/init" "$tmp/root/init"
entry=$(sed -n 's/ T entry_SYSCALL_64$//p' "$(dirname "$kernel")/System.map")
gcc -nostdlib -static -DENTRY="0x$entry" -o "$tmp/root/landing" "$here/landing.S"
(cd "$tmp/root" && find . | sort | cpio -o -H newc --quiet) >"$tmp/initramfs"

failed=0
# boot NAME MIB CPUS EXIT COMMAND-LINE: the power port makes QEMU exit with 2 * value + 1 (3: off, 5: reset).
boot() {
  local name=$1 mem=$2 cpus=$3 expected=$4 line=$5 code=0 start=$SECONDS
  say "$name"
  timeout 120 qemu-system-x86_64 -M microvm,x-option-roms=off,rtc=on,isa-serial=on -accel tcg -cpu max \
    -m "$mem" -smp "$cpus" -kernel "$kernel" -initrd "$tmp/initramfs" -nodefaults -no-user-config -display none \
    -serial stdio -no-reboot -device isa-debug-exit,iobase=0x600,iosize=1 \
    -append "quiet 8250.nr_uarts=1 console=ttyS0 cpus=$cpus mib=$mem $line" >"$tmp/out" 2>&1 </dev/null || code=$?
  local wrong=
  [ "$code" = "$expected" ] || wrong="QEMU ended with $code, not $expected (3: off, 5: reset, 124: too slow)"
  ! grep -q '^FAILED' "$tmp/out" || wrong="a check failed"
  grep -q '^ok' "$tmp/out" || wrong="no check ran"
  case $line in *test=panic*) ;; *) grep -q 'ok all checks ran' "$tmp/out" || wrong="not every check ran" ;; esac
  if [ -n "$wrong" ]; then
    sed 's/^/    /' "$tmp/out"
    say "FAILED: $name: $wrong"
    failed=1
  else
    say "  $(grep -c '^ok' "$tmp/out") checks passed in $((SECONDS - start)) s"
  fi
}
boot "two CPUs, 128 MiB; a jump to the syscall entry is a SIGSEGV" 128 2 3 "landing=139"
boot "servin.pvm: a jump to the syscall entry is a system call" 128 1 3 "servin.pvm landing=42"
boot "512 MiB" 512 2 3 "landing=139"
boot "32 MiB" 32 1 3 "landing=139"
boot "eight CPUs, more than 4 GiB" 4608 8 3 "landing=139"
boot "a panic resets the machine at once" 128 1 5 "test=panic"
exit $failed
