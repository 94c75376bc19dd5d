#!/bin/bash
# One image, one command, by servin and by Debian's podman (with crun and with runc), in one run of the nested host under
# --icount: virtual milliseconds from exec to the first byte of the program's output, and to the command's end. Needs the
# release builds of servin and of first_byte, and target/guest (`make bench` sees to them).
#
#   scripts/podman.sh [RUNS]      medians of RUNS (default 3), each after a run that is not counted
#
# podman and what it needs are downloaded by apt, by name, and unpacked below ~/.cache/servin/podman; nothing is installed.
# Where the packages cannot be had, it says so and succeeds.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
set -e
runs=${1:-3}
packages=(podman crun runc conmon golang-github-containers-common golang-github-containers-image libgpgme11 libassuan0 libgpg-error0
  libseccomp2 libyajl2 libglib2.0-0 libsystemd0 libcap2 libdevmapper1.02.1 libudev1 libselinux1 libpcre2-8-0 liblzma5 libzstd1
  liblz4-1 libgcrypt20 libsubid4 libc6 libgcc-s1 libffi8 zlib1g libmount1 libblkid1 libaudit1 libsemanage2 libsepol2 libcrypt1
  libpam0g libcap-ng0 libbz2-1.0)
[ -x "$target/release/servin" ] && [ -x "$target/release/first_byte" ] ||
  { echo 'podman: no release build: cargo build --release -p servin -p servin-benches'; exit 1; }

tree=$cache/podman/$(echo "${packages[@]}" | sha256sum | cut -c1-16)
exec 6>"$cache/podman.lock"
flock 6
if [ ! -f "$tree/versions" ]; then
  work=$(mktemp -d "$cache/podman.XXXXXX")
  # Over lib.sh's, which ends the step in hand; there is none here.
  trap 'rm -rf "$work"' EXIT
  apt=(-o "Dir::State::lists=$work/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o "APT::Sandbox::User=$(id -un)"
    -o Acquire::Retries=3)
  mkdir -p "$work/lists/partial" "$work/debs" "$work/root"
  timeout 300 apt-get "${apt[@]}" update >"$work/log" 2>&1 &&
    (cd "$work/debs" && timeout 600 apt-get "${apt[@]}" download "${packages[@]}") >>"$work/log" 2>&1 ||
    { tail -n 5 "$work/log"; echo 'skipped: the packages of podman cannot be had'; exit 0; }
  for deb in "$work"/debs/*.deb; do
    dpkg -x "$deb" "$work/root"
    dpkg-deb -f "$deb" Package Version | paste -sd' ' | sed 's/Package: //; s/Version: //' >>"$work/root/versions"
  done
  rm -rf "$work/root/usr/share/doc" "$work/root/usr/share/man" "$work/root/usr/share/locale" "$tree"
  mkdir -p "$cache/podman"
  mv "$work/root" "$tree"
  rm -rf "$work"
fi
flock -u 6
grep -E '^(podman|crun|runc|conmon) ' "$tree/versions"

script=$(mktemp)
trap 'rm -f "$script"' EXIT
cat >"$script" <<'INSIDE'
runs=$1
mkdir -p /etc/containers /disk/containers /disk/servin /disk/tmp /run/containers
# What a root podman of Debian's has, but for what this host has not: systemd, and devices for a network.
cat >/etc/containers/storage.conf <<X
[storage]
driver = "overlay"
graphroot = "/disk/containers"
runroot = "/run/containers"
X
cat >/etc/containers/containers.conf <<X
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
X
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
export TMPDIR=/disk/tmp SERVIN_DATA_ROOT=/disk/servin
status=0
measure() { # TITLE COMMAND...
  title=$1
  shift
  if times=$(/first_byte "$runs" -- "$@" 2>/disk/tmp/errors); then
    printf '%-36s %10s %10s\n' "$title" $times
  else
    printf '%-36s failed\n' "$title"
    head -n 20 /disk/tmp/errors
    status=1
  fi
}
podman load -q -i /guest/base.tar >/dev/null || exit 1
image=$(podman images -q | head -n 1)
printf '%-36s %10s %10s\n' 'virtual ms, echo hi' 'first byte' 'end'
measure 'servin run' /servin run --rm servin/base echo hi
measure 'servin run --no-warm' /servin run --rm --no-warm servin/base echo hi
measure 'servin run --network none' /servin run --rm --network none servin/base echo hi
measure 'podman run --network none, crun' podman --runtime crun run --rm --network none "$image" echo hi
measure 'podman run --network none, runc' podman --runtime runc run --rm --network none "$image" echo hi
measure 'the clock itself (busybox echo)' /bin/busybox echo hi
exit $status
INSIDE
"$root/tests/nested/run.sh" --icount --mem 3072 --disk 1024 --timeout 900 --env SERVIN_GUEST_DIR=/guest \
  --add "$tree/usr:/usr" --add "$tree/lib:/lib" --add "$SERVIN_GUEST_DIR:/guest" --add "$target/release/servin:/servin" \
  --add "$target/release/first_byte:/first_byte" --add "$script:/measure.sh" -- /bin/busybox sh /measure.sh "$runs"
