#!/bin/bash
# Builds the guest's agent and the initramfs that it travels in:
#   target/guest/servin-agent, target/guest/initramfs.cpio
# Equal sources and toolchain give equal bytes in a tree at the same place. (At another place the order of functions
# differs, because cargo hashes the path of a crate that lies outside of its workspace into every symbol.)
# SERVIN_ARCH   x86_64 or aarch64 (default: this machine's); for another one than this, into target/guest-ARCH/
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"
set -e
arch=${SERVIN_ARCH:-$(uname -m)}
out=$root/target/guest$(away "$arch")
mkdir -p "$out"

# No paths of this machine in panic messages, and no tables for unwinding, which never happens.
flags="--remap-path-prefix=$root=/servin --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo -Cforce-unwind-tables=no"
manifest=$root/initramfs/agent/Cargo.toml
if [ "$arch" = "$(uname -m)" ]; then
    RUSTFLAGS=$flags CARGO_TARGET_DIR=$target/agent cargo build --quiet --release --locked --manifest-path "$manifest"
    agent=$target/agent/release/servin-agent
else
    . "$root/scripts/cross.sh"
    [ "$arch" = aarch64 ] || { echo "initramfs: no toolchain for $arch (known: aarch64)" >&2; exit 1; }
    packages "${packages_arm64[@]}"
    (
        cross_lock
        cross_toolchain
        cross_arm64
        # shellcheck disable=SC2086
        RUSTFLAGS="$flags $CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS" CARGO_TARGET_DIR=$cross/agent \
            cargo build --quiet --release --locked --target "$arm64" $arm64_std --manifest-path "$manifest"
    )
    agent=$cross/agent/$arm64/release/servin-agent
fi

# A program interpreter is what makes a program dynamically linked.
if readelf --program-headers --wide "$agent" | grep -E 'INTERP|DYNAMIC'; then
    echo "initramfs: $agent is not statically linked" >&2
    exit 1
fi
size=$(stat -c %s "$agent")
if [ "$size" -gt 204800 ]; then
    echo "initramfs: the agent has grown to $size bytes; 200 KiB are allowed, because each is paid at boot" >&2
    exit 1
fi
# Whole or not at all: others may be reading them.
new=$(mktemp -d "$out/new.XXXXXX")
trap 'rm -rf "$new"' EXIT
cp "$agent" "$new/servin-agent"
CARGO_TARGET_DIR="$target" cargo run --quiet --locked --manifest-path "$root/initramfs/Cargo.toml" \
    --example pack -- "$new/servin-agent" "$new/initramfs.cpio"
mv "$new/servin-agent" "$new/initramfs.cpio" "$out/"
