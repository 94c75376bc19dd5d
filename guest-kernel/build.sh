#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Builds the guest kernel: Debian's linux-source-6.12, patches/*.patch, tinyconfig + ARCH.config + common.config.
#
#   guest-kernel/build.sh            build (or take from the cache) into target/guest/
#   guest-kernel/build.sh --key      print the cache key and exit
#   guest-kernel/build.sh --force    build although the cache has it; fails if the bytes differ
#
# Result: target/guest/{vmlinux,System.map,kernel.json}; for arm64 Image instead of vmlinux; for a machine other than
# this one in target/guest-ARCH/.
# SERVIN_ARCH           x86_64 or aarch64       (default: this machine's)
# SERVIN_KERNEL_SOURCE  the source tarball      (default /usr/src/linux-source-6.12.tar.xz)
# SERVIN_KERNEL_CACHE   results kept by key     (default ${XDG_CACHE_HOME:-~/.cache}/servin/kernel)
# SERVIN_KERNEL_JOBS    compiler processes      (default: one per CPU)
set -euo pipefail
export LC_ALL=C

# Raise it when this script changes what comes out of the same config, patches and source.
recipe=1
series=6.12

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
arch=${SERVIN_ARCH:-$(uname -m)} away=
[ "$arch" = "$(uname -m)" ] || away=-$arch
work=$root/target/guest-kernel$away
out=$root/target/guest$away
source=${SERVIN_KERNEL_SOURCE:-/usr/src/linux-source-$series.tar.xz}
cache=${SERVIN_KERNEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/servin/kernel}
jobs=${SERVIN_KERNEL_JOBS:-$(nproc)}

say() { echo "guest-kernel: $*" >&2; }
fail() { say "error: $*"; exit 1; }
hash() { sha256sum | cut -d' ' -f1; }

prefix=
case $arch in
    x86_64) kbuild=x86 image=vmlinux ;;
    aarch64)
        kbuild=arm64 image=Image
        [ -z "$away" ] || prefix=aarch64-linux-gnu-
        ;;
    *) fail "no guest kernel for $arch (known: x86_64, aarch64)" ;;
esac
[ -z "$away" ] || [ -n "$prefix" ] || fail "a kernel for $arch is built on $arch only"

# The fragments in one: what the machine's own says goes before what is common.
fragment() {
    cat "$here/$arch.config"
    awk 'function symbol(line) { return match(line, /CONFIG_[A-Z0-9a-z_]+/) ? substr(line, RSTART, RLENGTH) : "" }
        function is_line(line) { return line ~ /^(# )?CONFIG_[A-Za-z0-9_]+(=| is not set)/ }
        FNR == NR { if (is_line($0)) own[symbol($0)] = 1; next }
        !is_line($0) || !(symbol($0) in own)' "$here/$arch.config" "$here/common.config"
}

need=()
for tool in "${prefix}gcc:gcc${prefix:+-aarch64-linux-gnu}" "${prefix}ld:binutils" gcc:gcc make:make flex:flex bison:bison bc:bc patch:patch xz:xz-utils cpp:cpp; do
    command -v "${tool%%:*}" >/dev/null || need+=("${tool#*:}")
done
[ -e /usr/include/libelf.h ] || need+=(libelf-dev)

# Debian's package is named by its version; any other tarball by its hash.
identify() {
    [ -r "$source" ] || fail "$source is missing: apt-get install linux-source-$series (or set SERVIN_KERNEL_SOURCE)"
    local version=
    if [ "$source" = "/usr/src/linux-source-$series.tar.xz" ]; then
        version=$(dpkg-query -W -f '${Version}' "linux-source-$series" 2>/dev/null || true)
    fi
    if [ -n "$version" ]; then echo "linux-source-$series $version"; else echo "sha256 $(hash <"$source")"; fi
}
[ ${#need[@]} = 0 ] || fail "missing build tools: apt-get install ${need[*]}"
identity=$(identify)
compiler="$("${prefix}gcc" -dumpfullversion) $("${prefix}gcc" -dumpmachine) / $("${prefix}ld" --version | head -n1)"
config_hash=$(fragment | hash)
shopt -s nullglob
patches=("$here"/patches/*.patch)
hot=$here/hot-functions.txt
patches_hash=$(for p in "${patches[@]}" "$hot"; do basename "$p"; cat "$p"; done | hash)
key=$(echo "recipe $recipe|$identity|$compiler|$config_hash|$patches_hash" | hash)

mode=${1:-}
case $mode in
    --key) echo "$key"; exit 0 ;;
    --force | "") ;;
    *) fail "unknown argument $mode (known: --key, --force)" ;;
esac

# Copies a finished kernel from directory $1 to $2, each file appearing whole or not at all; kernel.json last.
publish() {
    mkdir -p "$2"
    local name
    for name in "$image" System.map kernel.json; do
        cp "$1/$name" "$2/.$name.$$"
        mv -f "$2/.$name.$$" "$2/$name"
    done
}
field() { sed -n "s/^ *\"$2\": \"\\{0,1\\}\\([^\",]*\\).*/\\1/p" "$1/kernel.json" 2>/dev/null | head -n1; }
# Is directory $1 a whole result for this key?
whole() {
    [ -f "$1/System.map" ] && [ -f "$1/$image" ] && [ "$(field "$1" key)" = "$key" ] &&
        [ "$(field "$1" size)" = "$(stat -c %s "$1/$image")" ]
}

if [ "$mode" != --force ]; then
    if whole "$out"; then
        say "up to date: ${out#"$PWD"/}/$image ($(field "$out" version), key ${key:0:12})"
        exit 0
    fi
    if whole "$cache/$key"; then
        [ "$(hash <"$cache/$key/$image")" = "$(field "$cache/$key" sha256)" ] ||
            fail "$cache/$key/$image is damaged: remove that directory"
        publish "$cache/$key" "$out"
        say "taken from the cache: $cache/$key"
        exit 0
    fi
fi

start=$SECONDS
tree=$work/linux
# A tree of the same source is kept. Only files that differ are touched, so that a changed patch costs what it changes.
if [ "$(cat "$work/source.key" 2>/dev/null || true)" != "$identity" ]; then
    say "1/4 unpacking $source ($identity)"
    mkdir -p "$work"
    rm -rf "$work/source.key" "$tree" "$work/unpack" "$work/pristine"
    mkdir "$work/unpack" "$work/pristine"
    tar -xf "$source" -C "$work/unpack"
    mv "$work/unpack"/*/ "$tree"
    rmdir "$work/unpack"
    echo "$identity" >"$work/source.key"
else
    say "1/4 source tree is unpacked already"
fi
# pristine/ holds every file that a patch ever changed as it came; stage/ holds the same files patched.
rm -rf "$work/stage"
mkdir "$work/stage"
sed -n 's,^+++ b/\([^\t]*\).*,\1,p' /dev/null "${patches[@]}" | sort -u | while read -r file; do
    [ -e "$work/pristine/$file" ] || (cd "$tree" && cp -p --parents "$file" "$work/pristine/")
done
cp -rp "$work/pristine/." "$work/stage/"
for p in "${patches[@]}"; do
    say "    patch $(basename "$p")"
    patch -d "$work/stage" -p1 --forward --fuzz=0 --no-backup-if-mismatch -s <"$p" || fail "$(basename "$p") does not apply"
done
(cd "$work/stage" && find . -type f) | while read -r file; do
    cmp -s "$work/stage/$file" "$tree/$file" || cp "$work/stage/$file" "$tree/$file"
done

# Where the linker puts the functions of a warm start (patch 0023).
sed 's/.*/*(.text.&)/' "$hot" >"$work/stage/hot-functions.lds"
cmp -s "$work/stage/hot-functions.lds" "$tree/arch/x86/kernel/hot-functions.lds" ||
    cp "$work/stage/hot-functions.lds" "$tree/arch/x86/kernel/hot-functions.lds"

say "2/4 configuring"
# Everything that would tell one build from another is pinned.
export SOURCE_DATE_EPOCH=1577836800 KBUILD_BUILD_TIMESTAMP='Wed Jan  1 00:00:00 UTC 2020'
export KBUILD_BUILD_USER=servin KBUILD_BUILD_HOST=servin KBUILD_BUILD_VERSION=1 TZ=UTC
unset CC LD CFLAGS KCFLAGS LDFLAGS MAKEFLAGS MFLAGS ARCH CROSS_COMPILE KCONFIG_ALLCONFIG
kmake() {
    make -C "$tree" --no-print-directory ARCH=$kbuild ${prefix:+CROSS_COMPILE=$prefix} KCFLAGS="-ffile-prefix-map=$tree=." \
        KAFLAGS="-ffile-prefix-map=$tree=." LDFLAGS_vmlinux=--build-id=none "$@"
}
log=$work/build.log
: >"$log"
run() { "$@" >>"$log" 2>&1 || { tail -n 25 "$log" >&2; fail "$* failed; the whole log is $log"; }; }
old=$([ -f "$tree/.config" ] && hash <"$tree/.config" || true)
[ -f "$tree/.config" ] && cp -p "$tree/.config" "$work/config.old"
run kmake tinyconfig
fragment >>"$tree/.config"
run kmake olddefconfig
lost=0
while read -r line; do
    case $line in
        CONFIG_*=*) grep -qxF -- "$line" "$tree/.config" && continue ;;
        "# CONFIG_"*" is not set")
            name=${line#\# }
            grep -q "^${name%% *}=" "$tree/.config" || continue
            ;;
        *) continue ;;
    esac
    say "    $arch.config, common.config: '$line' did not survive"
    lost=1
done < <(fragment)
[ $lost = 0 ] || fail "the kernel's Kconfig overruled the lines above (see $tree/.config)"
# An unchanged configuration must not look new to make.
[ "$old" = "$(hash <"$tree/.config")" ] && cp -p "$work/config.old" "$tree/.config"

say "3/4 compiling with $jobs processes, about 5 minutes on two CPUs"
run kmake -j"$jobs" "$image"
say "    compiled in $((SECONDS - start)) s"

say "4/4 stripping and checking"
mkdir -p "$cache"
part=$(mktemp -d "$cache/.part.XXXXXX")
trap 'rm -rf "$part"' EXIT
case $arch in
    x86_64)
        objcopy --strip-all --remove-section=.comment "$tree/vmlinux" "$part/vmlinux"
        readelf -n "$part/vmlinux" | grep -q Xen || fail "no PVH note in vmlinux"
        ;;
    aarch64) cp "$tree/arch/arm64/boot/Image" "$part/Image" ;;
esac
chmod 644 "$part/$image"
cp "$tree/System.map" "$part/System.map"
if grep -aqF "$root" "$part/$image"; then fail "$image contains the path $root"; fi
cat >"$part/kernel.json" <<JSON
{
  "version": "$(kmake -s kernelrelease)",
  "sha256": "$(hash <"$part/$image")",
  "size": $(stat -c %s "$part/$image"),
  "key": "$key",
  "config_sha256": "$config_hash",
  "source": "$identity",
  "compiler": "$compiler"
}
JSON
if whole "$cache/$key" && [ "$(field "$cache/$key" sha256)" != "$(field "$part" sha256)" ]; then
    fail "not reproducible: the same key gave other bytes before ($cache/$key)"
fi
publish "$part" "$cache/$key"
publish "$cache/$key" "$out"
say "done in $((SECONDS - start)) s: ${out#"$PWD"/}/$image, $(field "$out" size) bytes, $(field "$out" version)"
