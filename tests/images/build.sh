#!/bin/bash
# Images for the whole-machine tests, made from this machine's Debian packages: a Debian as debootstrap makes it, redis and
# Python on top of it, an image of hard cases, and one for several platforms. Prints the folder that holds them:
#
#   debian.tar redis.tar python.tar   docker save tars
#   hard.tar hard.json                every kind of tar entry on top of Python; what is to be seen below /hard
#   multi.tar                         an OCI index with an attestation, linux/arm64 and linux/amd64
#   host/                             redis-cli and docker-registry with their libraries, for the side of the host
#   versions                          of all packages
#
# Packages are downloaded by apt, by name, from where this machine has them, and nothing is installed. The folder is kept below
# ~/.cache/servin/images, named by the hash of the files that make it. Needs root, or a user with subordinate ids.
# Where the packages cannot be had, or not be configured, it prints `skipped: REASON` and no folder.
#
#   tests/images/build.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/servin/images
say() { printf 'images: %s\n' "$*" >&2; }

# ---- as root, in name spaces of its own: the trees ------------------------------------------------------------------------
inside() { # TREE COMMAND...: runs there with the devices that maintainer scripts want
  chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    DEBCONF_NONINTERACTIVE_SEEN=true "${@:2}" </dev/null >>log 2>&1
}
devices() { # TREE
  local name
  for name in null zero full random urandom; do
    : >"$1/dev/$name"
    mount --bind "/dev/$name" "$1/dev/$name"
  done
  mount --rbind /proc "$1/proc"
}
no_devices() { # TREE
  umount -l "$1/proc" "$1"/dev/*
  rm -f "$1"/dev/*
}
configure() { # TREE PACKAGE-FILE...: installs them
  local tree=$1
  shift
  mkdir "$tree/debs"
  ln "$@" "$tree/debs/" 2>/dev/null || cp "$@" "$tree/debs/"
  devices "$tree"
  # Services are not started here.
  printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
  chmod 755 "$tree/usr/sbin/policy-rc.d"
  inside "$tree" dpkg --force-depends --force-confnew --install "${@/#*\///debs/}"
  no_devices "$tree"
  rm -rf "$tree/debs" "$tree/usr/sbin/policy-rc.d" "$tree"/var/{lib/dpkg,cache/debconf}/*-old "$tree"/var/cache/{apt,ldconfig}/* \
    "$tree"/var/log/*.log "$tree"/var/log/apt/* "$tree"/usr/lib/python3*/__pycache__
}
grown() { # NAME FROM PACKAGE...: a copy of a tree with more packages, and NAME.layer of what is new in it
  local name=$1 from=$2
  shift 2
  cp -a "$from" "$name"
  sleep 0.1
  touch marker
  sleep 0.1
  configure "$name" "$@"
  [ "$name" != redis ] || install -d -m 750 -o "$(sed -n 's/^redis:[^:]*:\([0-9]*\):.*/\1/p' redis/etc/passwd)" \
    -g "$(sed -n 's/^redis:[^:]*:\([0-9]*\):.*/\1/p' redis/etc/group)" redis/data
  (cd "$name" && find . -mindepth 1 -cnewer ../marker -print0 | LC_ALL=C sort -z) |
    tar -C "$name" --numeric-owner --no-recursion --null -T - -cf "$name.layer"
}
left_out=('/usr/share/'{doc,man,info,locale,i18n,lintian,zoneinfo}'/*' '/usr/lib/*/gconv/*')
trees() { # in the folder with debs/
  local name deb
  mkdir -p debian/usr/{bin,sbin,lib,lib64} debian/{dev,proc} debian/etc/dpkg/dpkg.cfg.d debian/etc/apt
  for name in bin sbin lib lib64; do ln -s usr/$name debian/$name; done
  printf 'path-exclude=%s\n' "${left_out[@]}" >debian/etc/dpkg/dpkg.cfg.d/slim
  # What dpkg itself needs to run, as debootstrap does it, and then everything by dpkg.
  for deb in debs/essential/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -p --keep-directory-symlink -C debian \
      "${left_out[@]/#/--exclude=.}"
  done
  cp debian/usr/share/base-passwd/passwd.master debian/etc/passwd
  cp debian/usr/share/base-passwd/group.master debian/etc/group
  configure debian debs/essential/*.deb
  configure debian debs/debian/*.deb
  # Nobody is to be asked for packages from a test.
  rm -rf debian/etc/apt/sources.list.d/*
  printf 'deb http://debian.invalid/debian stable main\n' >debian/etc/apt/sources.list
  tar -C debian --numeric-owner --sort=name -cf debian.layer .
  grown redis debian debs/redis/*.deb
  grown python debian debs/python/*.deb
  # The programs for the host, started by the linker that they know.
  mkdir -p out/host/lib out/host/bin redis/tmp/host
  cp docker-registry/usr/bin/docker-registry redis/usr/bin/redis-cli out/host/
  cp out/host/docker-registry out/host/redis-cli redis/tmp/host/
  devices redis
  chroot redis ldd /tmp/host/redis-cli /tmp/host/docker-registry | grep -o '/lib[^ ]*' | sort -u >libraries
  no_devices redis
  while read -r name; do cp -L "redis$name" out/host/lib/; done <libraries
  for name in redis-cli docker-registry; do
    printf '#!/bin/sh\nhere=$(dirname "$0")/..\nexec "$here"/lib/ld-linux-* --library-path "$here/lib" "$here/%s" "$@"\n' $name >out/host/bin/$name
    chmod 755 out/host/bin/$name
  done
  python3 -B "$here/images.py"
}
if [ "${1:-}" = :trees ]; then
  cd "$2"
  trees
  exit
fi

# ---- the cache ------------------------------------------------------------------------------------------------------------
key=$({ cat "$here"/*.sh "$here"/*.py; dpkg --print-architecture; } 2>/dev/null | sha256sum | cut -c1-16)
out=$cache/$key
skip() { echo "skipped: $*"; exit 0; }
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || skip 'no apt and dpkg to make images from packages with'
mkdir -p "$cache"
exec 6>"$cache/lock"
flock 6
if [ -f "$out/versions" ]; then say 'taken from the cache'; echo "$out"; exit 0; fi
if [ "$(id -u)" = 0 ]; then apart=(unshare --mount); else apart=(unshare --user --map-root-user --map-auto --mount); fi
"${apart[@]}" true 2>/dev/null || skip 'neither root nor a user with subordinate ids: Debian packages cannot be configured'

work=$(mktemp -d "$cache/build.XXXXXX")
clean() { "${apart[@]}" rm -rf "$work" 2>/dev/null || rm -rf "$work"; }
trap clean EXIT
trap 'exit 143' TERM INT HUP
mkdir -p "$work/lists/partial" "$work/debs"
: >"$work/status"
# A package list of our own, and no package installed: what is asked for comes with all that it needs.
apt=(-q -o "Dir::State::lists=$work/lists" -o "Dir::State::status=$work/status" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
  -o "APT::Sandbox::User=$(id -un)" -o Acquire::Retries=3 -o Debug::NoLocking=1)
base=('?essential' '?priority(required)' apt usr-is-merged)
fetch() { # NAME BEFORE PACKAGE...: packages with what they need, without those fetched for BEFORE
  local name=$1 before=$2
  shift 2
  mkdir -p "$work/debs/$name/partial"
  [ -z "$before" ] || ln "$work/debs/$before"/*.deb "$work/debs/$name/"
  timeout 600 apt-get "${apt[@]}" -o "Dir::Cache::archives=$work/debs/$name/" -y --no-install-recommends --download-only \
    install "$@" >>"$work/log" 2>&1 || return 1
  rmdir "$work/debs/$name/partial"
}
single() { # PACKAGE: alone, unpacked
  mkdir -p "$work/deb-$1"
  (cd "$work/deb-$1" && timeout 300 apt-get "${apt[@]}" download "$1" && dpkg-deb -x ./*.deb "$work/$1") >>"$work/log" 2>&1
}
say 'reading the package list'
{ timeout 300 apt-get "${apt[@]}" update >"$work/log" 2>&1 && say 'downloading packages' && fetch essential '' '?essential' usr-is-merged &&
  fetch debian essential "${base[@]}" && fetch redis debian "${base[@]}" redis-server && fetch python debian "${base[@]}" python3 &&
  single docker-registry && single busybox-static; } || { tail -n 5 "$work/log" >&2; skip 'the packages of the images cannot be had'; }
for deb in "$work"/debs/{redis,python}/*.deb; do [ ! -f "$work/debs/debian/${deb##*/}" ] || rm "$deb"; done
for deb in "$work"/debs/essential/*.deb; do rm "$work/debs/debian/${deb##*/}"; done
say 'installing them into trees'
"${apart[@]}" "$here/build.sh" :trees "$work" || { tail -n 20 "$work/log" >&2; say 'the images could not be made'; exit 1; }
for deb in "$work"/debs/*/*.deb "$work"/deb-*/*.deb; do dpkg-deb -f "$deb" Package Version; done |
  paste -d' ' - - | sed 's/Package: //; s/Version: //' | sort -u >"$work/out/versions"
rm -rf "$out"
mv "$work/out" "$out"
# Images of earlier versions of these files serve no one.
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$key" ! -name 'build.*' -mtime +7 -exec rm -rf {} +
say "ready: $(grep -cE . "$out/versions") packages, $(du -sm "$out" | cut -f1) MiB"
echo "$out"
