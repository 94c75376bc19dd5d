#!/bin/bash
# Shared by what compiles for another machine than this one, from Debian packages alone: a toolchain apart from
# rustup's, with std built from source for macOS and Windows and unpacked from the arm64 package for arm64. To be
# sourced by bash behind lib.sh.
cross=$cache/cross
mkdir -p "$cross/log"

# Takes the lock of the cross build output, and starts it anew when clones at other paths have left too much in it.
cross_lock() {
  exec 8>"$cross/lock"
  flock 8
  own_build_output "$cross/target" 9000
}

# Debian's own toolchain instead of rustup's, for every cargo that follows. What it builds is small and quick enough
# for an emulator: optimised a little, without debug information.
cross_toolchain() {
  export PATH=/usr/bin:/bin:/usr/sbin:/sbin RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc CARGO=/usr/bin/cargo
  export CARGO_TARGET_DIR=$cross/target CARGO_INCREMENTAL=0
  export CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0
  unset RUSTUP_TOOLCHAIN RUSTFLAGS RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER CARGO_BUILD_TARGET
  # -Z build-std is an unstable flag, and this is a stable compiler.
  export RUSTC_BOOTSTRAP=1
}

# Unpacks Debian packages of another architecture: foreign_packages ARCH DIRECTORY PACKAGE[=VERSION]...
# The machine's own package lists and architectures stay as they are.
foreign_packages() {
  local arch=$1 into=$2 work apt deb
  shift 2
  work=$(mktemp -d "$cache/apt.XXXXXX") || return 1
  mkdir -p "$work/lists/partial" "$work/deb" "$into"
  apt=(-o "APT::Architectures::=$(dpkg --print-architecture)" -o "APT::Architectures::=$arch" -o "Dir::State::lists=$work/lists"
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o "APT::Sandbox::User=$(id -un)" -o Acquire::Retries=3)
  if timeout 300 apt-get "${apt[@]}" update >"$work/log" 2>&1 &&
    (cd "$work/deb" && timeout 600 apt-get "${apt[@]}" download "$@") >>"$work/log" 2>&1; then
    for deb in "$work"/deb/*.deb; do dpkg -x "$deb" "$into" || return 1; done
    rm -rf "$work"
  else
    tail -n 5 "$work/log" >&2
    rm -rf "$work"
    return 1
  fi
}

# Sets up cargo for arm64: $arm64 is the target, $arm64_std what cargo needs to build a std where no ready one can be had.
arm64=aarch64-unknown-linux-gnu
cross_arm64() {
  local version sysroot host
  version=$(dpkg-query -W -f '${Version}' libstd-rust-web-dev)
  sysroot=$cross/sysroot-$version
  if [ ! -d "$sysroot/lib/rustlib/$arm64" ]; then
    rm -rf "$sysroot" "$sysroot.new"
    mkdir -p "$sysroot.new/lib/rustlib"
    if foreign_packages arm64 "$sysroot.x" "libstd-rust-web-dev:arm64=$version"; then
      host=$($RUSTC -vV | sed -n 's/^host: //p')
      ln -s "/usr/lib/rustlib/$host" "$sysroot.new/lib/rustlib/$host"
      mv "$sysroot.x/usr/lib/rustlib/$arm64" "$sysroot.new/lib/rustlib/"
      mv "$sysroot.new" "$sysroot"
    fi
    rm -rf "$sysroot.x" "$sysroot.new"
  fi
  arm64_std=
  if [ -d "$sysroot/lib/rustlib/$arm64" ]; then
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="--sysroot $sysroot"
  else
    echo 'no prebuilt std for arm64: it is built from source'
    arm64_std=-Zbuild-std
  fi
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64-static -L /usr/aarch64-linux-gnu'
}

# Sets up cargo for macOS, where things are checked and nothing is linked. The build scripts of some dependencies (SQLite,
# ring, zstd) compile C for the target, which needs Apple's headers. What they make is only looked at by a linker: here
# stand-ins make empty files of the names that were asked for. So the C code is not checked, and what comes out must never be linked.
cross_mac() {
  local tools=$cross/mac triple
  mkdir -p "$tools"
  cat >"$tools/cc" <<'SH'
#!/bin/sh
# A compiler that compiles nothing: see cross.sh.
case " $* " in *' -E '*) echo clang; exit 0 ;; esac
while [ $# -gt 0 ]; do
  case $1 in
    -o) : >"$2"; shift ;;
    -o*) : >"${1#-o}" ;;
  esac
  shift
done
SH
  cat >"$tools/ar" <<'SH'
#!/bin/sh
# An archiver that archives nothing: see cross.sh.
for word; do
  case $word in *.a) : >>"$word" ;; esac
done
SH
  chmod +x "$tools/cc" "$tools/ar"
  for triple in aarch64_apple_darwin x86_64_apple_darwin; do
    export "CC_$triple=$tools/cc" "AR_$triple=$tools/ar"
  done
  # Else xcrun is asked where the headers are.
  export SDKROOT=$tools MACOSX_DEPLOYMENT_TARGET=11.0
}
