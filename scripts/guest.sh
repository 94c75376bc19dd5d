#!/bin/bash
# What a guest is made of, into target/guest/: the kernel, the initramfs with the agent, the base image.
#   scripts/guest.sh [kernel] [initramfs] [base]        (none named: all)
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ $# -gt 0 ] || set -- kernel initramfs base
steps_total=$(($# + 1))
step packages 900 bash -c 'packages "$@"' - "${packages_build[@]}" "${packages_guest[@]}" || exit 1
for part; do
  case $part in
    kernel) step 'guest kernel' 3000 guest-kernel/build.sh ;;
    initramfs) step 'agent and initramfs' 900 initramfs/build.sh ;;
    base) step 'base image' 300 engine/base/build.sh ;;
    *) echo "unknown part $part (known: kernel, initramfs, base)"; exit 2 ;;
  esac || exit 1
done
