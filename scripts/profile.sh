#!/bin/bash
# Where the instructions of a start go: every block that the nested host executes during one warm and one cold
# `servin run`, counted exactly by a plugin of QEMU, and of each the part up to the first KVM_RUN, of the cold one also the
# part from there to the guest's PID 1; that part by phase and by initcall, too (boot.txt; nothing is printed for it, as with
# initcall_debug). Tables go to target/profile; so do guest-functions.txt, the guest
# kernel's functions that a warm start runs, and servin-functions.txt, servin's that a warm or a cold start runs:
# guest-kernel/hot-functions.txt and cli/hot-functions.txt are copies of them.
#
#   scripts/profile.sh                wanted before: target/guest and the release build of servin
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
out=$root/target/profile
servin=$root/target/release/servin
rm -rf "$out"
mkdir -p "$out"
gcc -O2 -Wall -shared -fPIC -o "$out/count.so" benches/profile/count.c || exit 1
strip -o "$out/servin" "$servin" || exit 1
# A call that nothing else makes in between marks where a count ends.
symbols=$(tests/nested/run.sh -- grep -wE '__x64_sys_sethostname|fpu_swap_kvm_fpstate' /proc/kallsyms) || exit 1
address() { awk -v name="$1" '$3 == name { print "0x" $1 }'; }
marker=$(address __x64_sys_sethostname <<<"$symbols")
# KVM_RUN takes the guest's registers of floating point first, and the guest's kernel starts no other program than PID 1.
map=$SERVIN_GUEST_DIR/System.map
kvm_run=$(address fpu_swap_kvm_fpstate <<<"$symbols")
steps=step=$kvm_run,step=$(address kernel_execve <"$map")
# What the guest's kernel calls, one by one, and how much of that is its own and how many exits.
ranges=$(benches/profile/boot.py --ranges "$map") || exit 1
steps+=,trace=$kvm_run,$ranges,own=$(address _text <"$map")-$(address _end <"$map")
cat >"$out/inside.sh" <<'INSIDE'
export SERVIN_DATA_ROOT=/tmp/data SERVIN_GUEST_DIR=/guest
cat /proc/kallsyms >/out/kallsyms
echo 0 >/proc/sys/kernel/randomize_va_space
/servin run --rm servin/base true || exit 1
for run in 1 2 3; do usleep 500000; /servin run --rm servin/base echo hi; done
usleep 500000
hostname warm
/servin run --rm servin/base echo hi
usleep 500000
hostname cold
/servin run --rm --no-warm servin/base echo hi
usleep 500000
hostname end
INSIDE
tests/nested/run.sh --icount --mem 3072 --timeout 900 --out "$out" --plugin "$out/count.so,out=$out/count,marker=$marker,$steps" \
  --add "$SERVIN_GUEST_DIR:/guest" --add "$out/servin:/servin" --add "$out/inside.sh:/inside.sh" -- /bin/sh /inside.sh || exit 1
# Count 0 ends with the nested host's own name.
report() { benches/profile/report.py "$out" "$1" "$2" "$servin" "$map" "${@:3}"; }
section() { echo "== $1"; report "${@:2}"; echo; } # TITLE FIRST SECOND
{
  section 'warm, all of it' 1 2
  section 'warm, to the first KVM_RUN' 1 2.0 --top 10
} >"$out/warm.txt" || exit 1
{
  section 'cold, all of it' 2 3
  section 'cold, to the first KVM_RUN' 2 3.0 --top 10
  section 'cold, from there to PID 1' 3.0 3.1 --top 25
  section 'cold, from there to the end' 3.1 3 --top 10
} >"$out/cold.txt" || exit 1
benches/profile/boot.py "$out" 3 "$SERVIN_GUEST_DIR/vmlinux" "$map" "$kvm_run" >"$out/boot.txt" || exit 1
report 1 2 --guest-functions >"$out/guest-functions.txt" && report 1 3 --servin-functions >"$out/servin-functions.txt" || exit 1
cat "$out/warm.txt" "$out/cold.txt" "$out/boot.txt"
