#!/bin/bash
# Builds the nested host: a Debian kernel with KVM and a busybox userland, to be booted by
# run.sh under QEMU's TCG, which emulates a CPU whose guests may use KVM. Needs no privilege and installs
# nothing: the packages are downloaded and unpacked into a cache of our own.
#
#   tests/nested/image.sh [--refresh] [ARCH]      prints the folder that holds the image
#
# ARCH is x86_64 (default; KVM for AMD) or aarch64 (entered at EL2).
# The folder holds: vmlinuz, base.cpio, busybox (the host's), own/busybox (one that runs here), versions (of the
# packages), paths (what base.cpio holds).
# It is kept under ${XDG_CACHE_HOME:-~/.cache}/servin/nested/, named by the hash of the files that make it;
# target/nested-ARCH is a link to it. --refresh builds again, with the packages that the archive has now.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/servin/nested

say() { printf 'nested image: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

refresh=
[ "${1:-}" != --refresh ] || { refresh=1; shift; }
arch=${1:-x86_64}
# Modules for the host, dependencies are added. KVM, the virtio bus under QEMU, and what a container
# engine may want to find on a host.
modules=(virtio_pci virtio_console virtio_blk overlay fuse loop tun erofs squashfs
  vsock vmw_vsock_virtio_transport vhost_vsock)
case $arch in
  x86_64) debian=amd64 modules=(kvm-amd "${modules[@]}") ;;
  aarch64) debian=arm64 ;; # KVM is built in
  *) die "no nested host for $arch (known: x86_64, aarch64)" ;;
esac
own=$(dpkg --print-architecture)

key=$({ cat "$here/image.sh" "$here/init"; echo "$arch"; } | sha256sum | cut -c1-16)
out=$cache/$arch-$key

link() {
  mkdir -p "$root/target"
  ln -sfn "$out" "$root/target/nested-$arch" 2>/dev/null || true
  printf '%s\n' "$out"
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ -z "$refresh" ] && [ -f "$out/base.cpio" ]; then link; exit 0; fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/deb" "$work/x" "$work/root" "$work/image"

# A package list of our own: the machine's may be absent or old, and refreshing it takes root.
apt=(-o "APT::Architectures::=$own" -o "APT::Architectures::=$debian" -o "Dir::State::lists=$work/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
  -o "APT::Sandbox::User=$(id -un)" -o Acquire::Retries=3)
mkdir -p "$work/lists/partial"
say "reading the package list"
timeout 300 apt-get "${apt[@]}" update >"$work/apt.log" 2>&1 || { cat "$work/apt.log" >&2; die "apt-get update failed"; }
kernel=$(apt-cache "${apt[@]}" depends "linux-image-cloud-$debian:$debian" |
  sed -n "s/.*Depends: \(linux-image-[0-9].*-cloud-$debian\)\(:$debian\)\{0,1\}\$/\1/p" | head -1)
[ -n "$kernel" ] || die "the archive has no linux-image-cloud-$debian"
say "downloading $kernel and busybox-static"
(cd "$work/deb" && timeout 600 apt-get "${apt[@]}" download "$kernel:$debian" "busybox-static:$debian") >"$work/apt.log" 2>&1 ||
  { cat "$work/apt.log" >&2; die "the download failed"; }
for deb in "$work"/deb/*.deb; do
  dpkg -x "$deb" "$work/x"
  dpkg-deb -f "$deb" Package Version | paste -sd' ' | sed 's/Package: //; s/Version: //' >>"$work/image/versions"
done
busybox=$work/x/bin/busybox
[ -x "$busybox" ] || busybox=$work/x/usr/bin/busybox
pack=$busybox
if [ "$debian" != "$own" ]; then
  mkdir "$work/own"
  (cd "$work/own" && timeout 600 apt-get "${apt[@]}" download "busybox-static:$own") >"$work/apt.log" 2>&1 ||
    { cat "$work/apt.log" >&2; die "the download failed"; }
  dpkg -x "$work"/own/*.deb "$work/own/x"
  pack=$(echo "$work"/own/x/bin/busybox)
  [ -x "$pack" ] || pack=$work/own/x/usr/bin/busybox
fi
tree=$(echo "$work"/x/lib/modules/*)
[ -d "$tree" ] || tree=$(echo "$work"/x/usr/lib/modules/*)
release=$(basename "$tree")

# The modules and what they depend on, unpacked where the package packs them.
into=$work/root/lib/modules/$release
declare -A taken=()
take() {
  local name=${1//-/_} file dep
  [ -z "${taken[$name]:-}" ] || return 0
  taken[$name]=1
  file=$(find "$tree/kernel" -name "${name//_/[-_]}.ko*" | head -1)
  if [ -z "$file" ]; then
    grep -q "/${name//_/[-_]}\.ko" "$tree/modules.builtin" && return 0
    die "$kernel has no module $1"
  fi
  local plain=$into/${file#"$tree/"}
  plain=${plain%.ko*}.ko
  mkdir -p "$(dirname "$plain")"
  case $file in
    *.xz) xz -dc "$file" >"$plain" ;;
    *.zst) zstd -dcq "$file" >"$plain" ;;
    *.gz) gzip -dc "$file" >"$plain" ;;
    *) cp "$file" "$plain" ;;
  esac
  for dep in $(tr '\0' '\n' <"$plain" | sed -n 's/^depends=//p' | tr ',' ' '); do take "$dep"; done
}
for module in "${modules[@]}"; do take "$module"; done
cp "$tree"/modules.builtin* "$tree/modules.order" "$into/"
"$pack" depmod -b "$work/root" "$release"

# The userland.
(cd "$work/root" && mkdir -p bin sbin usr/bin usr/sbin mnt opt etc proc sys dev run tmp root home/user var/tmp lib lib64 nested)
# Where a dynamic linker of Debian's looks.
[ "$debian" = "$own" ] || ln -s . "$work/root/lib/$arch-linux-gnu"
cp "$busybox" "$work/root/bin/busybox"
for applet in $("$pack" --list); do
  [ "$applet" = busybox ] || ln -s busybox "$work/root/bin/$applet"
done
for tool in modprobe insmod depmod poweroff reboot; do ln -s ../bin/busybox "$work/root/sbin/$tool"; done
install -m 755 "$here/init" "$work/root/init"
printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'user:x:1000:1000:user:/home/user:/bin/sh' \
  'nobody:x:65534:65534:nobody:/nonexistent:/bin/false' >"$work/root/etc/passwd"
printf '%s\n' 'root:x:0:' 'tty:x:5:' 'kvm:x:104:user' 'user:x:1000:' 'nogroup:x:65534:' >"$work/root/etc/group"
printf '%s\n' 'user:100000:65536' | tee "$work/root/etc/subuid" >"$work/root/etc/subgid"
printf '%s\n' '127.0.0.1 localhost nested' '::1 localhost' >"$work/root/etc/hosts"
printf 'nested\n' >"$work/root/etc/hostname"
printf 'passwd: files\ngroup: files\nhosts: files\n' >"$work/root/etc/nsswitch.conf"

(cd "$work/root" && find . | LC_ALL=C sort | "$pack" cpio -o -H newc -R 0:0) >"$work/image/base.cpio" 2>/dev/null
cp "$work"/x/boot/vmlinuz-* "$work/image/vmlinuz"
cp "$busybox" "$work/image/busybox"
mkdir "$work/image/own" && cp "$pack" "$work/image/own/busybox"
(cd "$work/root" && find . | cut -c2- | LC_ALL=C sort) >"$work/image/paths"
rm -rf "$out"
mv "$work/image" "$out"
# Images of earlier versions of these files serve no one.
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "*-$key" ! -name "$(basename "$out")" ! -name 'build.*' -mtime +7 -exec rm -rf {} +
say "ready: $(paste -sd, "$out/versions"), $(du -sm "$out" | cut -f1) MiB in $out"
link
