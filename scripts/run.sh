#!/bin/bash
# From a fresh clone to a container's output: what is missing is installed, everything is built once and cached,
# and `servin run` boots a microVM. Arguments replace the image and the command.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ $# -gt 0 ] || set -- servin/base echo 'hello from a microVM'
steps_total=7
step packages 900 bash -c 'packages "$@"' - "${packages_build[@]}" "${packages_guest[@]}" || exit 1
step servin 1800 cargo build --release --locked -p servin || exit 1
step 'guest kernel' 3000 guest-kernel/build.sh || exit 1
step 'agent and initramfs' 900 initramfs/build.sh || exit 1
step 'base image' 300 engine/base/build.sh || exit 1
servin=$target/release/servin
step 'what this host offers' 60 "$servin" doctor
sed 's/^/    /' "$logs/what-this-host-offers.log"
[ $steps_failed = 0 ] || exit 1
steps_done=$((steps_done + 1))
printf '==> [%d/%d] %s run' $steps_done $steps_total "${servin#"$root/"}"
printf ' %q' "$@"; echo
started=$(now)
timeout 300 "$servin" run "$@"
status=$?
printf '    exit code %d after %s\n' $status "$(span $(($(now) - started)))"
exit $status
