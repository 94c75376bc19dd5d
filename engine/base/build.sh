#!/bin/bash
# Builds the image servin/base into target/guest/: base.tar (a `docker save` tar with an OCI layout inside) and base.id
# (the image's id, by which the engine sees that a new version is there). Needs python3, no root, and no network.
#
#   engine/base/build.sh [DIR]
#
# SERVIN_ARCH           x86_64 or aarch64 (default: this machine's); for another one than this, into target/guest-ARCH/
# SERVIN_MINIROOTFS     Alpine's alpine-minirootfs-VERSION-ARCH.tar.gz, to be the image as it is
# SERVIN_BUSYBOX        a static busybox            (default: Debian's busybox-static, installed or downloaded)
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"
set -e
arch=${SERVIN_ARCH:-$(uname -m)}
if [ -n "$(away "$arch")" ] && [ -z "${SERVIN_BUSYBOX:-}${SERVIN_MINIROOTFS:-}" ]; then
    # The base of another machine: its package, and an emulator to ask it for its commands.
    [ "$arch" = aarch64 ] || { echo "base: no packages for $arch (known: aarch64)" >&2; exit 1; }
    . "$root/scripts/cross.sh"
    packages qemu-user-static
    export SERVIN_BUSYBOX=$cache/busybox-arm64/bin/busybox
    [ -x "$SERVIN_BUSYBOX" ] || foreign_packages arm64 "$cache/busybox-arm64" busybox-static:arm64
fi
exec python3 "$root/engine/base/image.py" "${1:-$root/target/guest$(away "$arch")}" "$arch"
