#!/bin/sh
# Builds the guest's agent and the initramfs that it travels in:
#   target/guest/servin-agent, target/guest/initramfs.cpio
# Equal sources and toolchain give equal bytes in a tree at the same place. (At another place the order of functions
# differs, because cargo hashes the path of a crate that lies outside of its workspace into every symbol.)
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
out=$root/target/guest
mkdir -p "$out"

# No paths of this machine in panic messages, and no tables for unwinding, which never happens.
RUSTFLAGS="--remap-path-prefix=$root=/servin --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo \
-Cforce-unwind-tables=no" \
    CARGO_TARGET_DIR="$target/agent" \
    cargo build --quiet --release --locked --manifest-path "$root/initramfs/agent/Cargo.toml"

agent=$target/agent/release/servin-agent
# A program interpreter is what makes a program dynamically linked.
if readelf --program-headers --wide "$agent" | grep -E 'INTERP|DYNAMIC'; then
    echo "initramfs: $agent is not statically linked" >&2
    exit 1
fi
size=$(stat -c %s "$agent")
if [ "$size" -gt 153600 ]; then
    echo "initramfs: the agent has grown to $size bytes; 150 KiB are allowed, because each is paid at boot" >&2
    exit 1
fi
# Whole or not at all: others may be reading them.
new=$(mktemp -d "$out/new.XXXXXX")
trap 'rm -rf "$new"' EXIT
cp "$agent" "$new/servin-agent"
CARGO_TARGET_DIR="$target" cargo run --quiet --locked --manifest-path "$root/initramfs/Cargo.toml" \
    --example pack -- "$new/servin-agent" "$new/initramfs.cpio"
mv "$new/servin-agent" "$new/initramfs.cpio" "$out/"
