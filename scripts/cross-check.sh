#!/bin/bash
# Checks and lints, for targets other than this machine's, the crates that compile there today, and runs the unit
# tests of arm64 under qemu's user mode. Works from Debian packages alone: a toolchain apart from rustup's, with std
# built from source for macOS and Windows and unpacked from the arm64 package for arm64.
#
#   scripts/cross-check.sh [arm] [mac] [win]        (none named: all)
#
# Ends with `N passed, N failed, N skipped`; skipped are the crates named in NOT_YET.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# ---- what is covered: the one place to change when a crate gets to a target ---------------------------------------
ARM=(servin-init servin-guest-kernel servin-devices)
ARM_TESTS=(servin-init servin-guest-kernel servin-devices)
# Tests that start their own program again: the emulator is not in the kernel, so an arm64 program cannot be started.
ARM_SKIP=(no_descriptor_and_no_thread_is_left_behind)
MAC=(servin-init servin-guest-kernel)
WIN=(servin-init servin-guest-kernel)
NOT_YET=(
  'arm64 Linux: servin-vmm, servin-engine, servin: the KVM backend speaks x86 only'
  'macOS: servin-devices: its event loop has no kqueue leaf yet'
  'macOS: servin-vmm, servin-engine, servin: the Hypervisor.framework backend is not written'
  'Windows: servin-devices: virtio-queue and vm-memory use descriptors there'
  'Windows: servin-vmm, servin-engine, servin: the WHP backend is not written'
)

[ $# -gt 0 ] || set -- arm mac win
work=$cache/cross
log=$work/log
mkdir -p "$log"
exec 8>"$work/lock"
flock 8
# Clones at other paths leave their copies of the workspace's crates: start anew when it has grown.
[ "$(du -sm "$work/target" 2>/dev/null | cut -f1)" -lt 6000 ] 2>/dev/null || rm -rf "$work/target"

needed=(rustc-web cargo-web rust-web-src rust-web-clippy libstd-rust-web-dev gcc libc6-dev)
case " $* " in *' arm '*) needed+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static) ;; esac
case " $* " in *' win '*) needed+=(gcc-mingw-w64-x86-64) ;; esac
packages "${needed[@]}" || exit 1

export PATH=/usr/bin:/bin:/usr/sbin:/sbin RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc CARGO=/usr/bin/cargo
export CARGO_TARGET_DIR=$work/target CARGO_INCREMENTAL=0
unset RUSTUP_TOOLCHAIN RUSTFLAGS RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER CARGO_BUILD_TARGET
echo "using $($RUSTC -V)"
passed=0 failed=0

check() { # LABEL COMMAND...
  local label=$1 file started
  shift
  file=$log/$(tr -c 'a-zA-Z0-9\n' '-' <<<"$label").log started=$(now)
  # -Z build-std is an unstable flag, and this is a stable compiler.
  if RUSTC_BOOTSTRAP=1 "$@" >"$file" 2>&1; then
    passed=$((passed + 1))
    printf 'PASS  %-44s %s\n' "$label" "$(span $(($(now) - started)))"
  else
    failed=$((failed + 1))
    printf 'FAIL  %-44s %s\n' "$label" "$(span $(($(now) - started)))"
    { grep -E -A14 '^error|FAILED|panicked' "$file" || tail -n 30 "$file"; } | head -80 | sed 's/^/    | /'
  fi
}
# Clippy compiles what it lints: it is the check too. Named by its path, since cargo would look for a subcommand
# among rustup's first.
lint() { # TARGET BUILD-STD CRATES...
  local target=$1 std=$2
  shift 2
  # shellcheck disable=SC2086
  check "$target: clippy" /usr/bin/cargo-clippy clippy $std --locked --target "$target" "${@/#/-p}" -- -D warnings
}
std='-Zbuild-std=std,panic_abort'

for step; do
  case $step in
    arm)
      target=aarch64-unknown-linux-gnu
      version=$(dpkg-query -W -f '${Version}' libstd-rust-web-dev)
      sysroot=$work/sysroot-$version
      if [ ! -d "$sysroot/lib/rustlib/$target" ]; then
        # The machine's own package lists and architectures stay as they are.
        rm -rf "$work/apt" "$sysroot"
        mkdir -p "$work/apt/lists/partial" "$work/apt/deb" "$sysroot/lib/rustlib"
        apt=(-o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o "Dir::State::lists=$work/apt/lists"
          -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o "APT::Sandbox::User=$(id -un)")
        if apt-get "${apt[@]}" update >"$log/apt" 2>&1 &&
          (cd "$work/apt/deb" && apt-get "${apt[@]}" download "libstd-rust-web-dev:arm64=$version") >>"$log/apt" 2>&1 &&
          dpkg -x "$work"/apt/deb/*.deb "$work/apt/x"; then
          host=$($RUSTC -vV | sed -n 's/^host: //p')
          ln -s "/usr/lib/rustlib/$host" "$sysroot/lib/rustlib/$host"
          mv "$work/apt/x/usr/lib/rustlib/$target" "$sysroot/lib/rustlib/"
        else
          tail -n 5 "$log/apt"
        fi
        rm -rf "$work/apt"
      fi
      arm_std=
      if [ -d "$sysroot/lib/rustlib/$target" ]; then
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="--sysroot $sysroot"
      else
        echo 'no prebuilt std for arm64: it is built from source'
        arm_std=-Zbuild-std
      fi
      export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
      export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
      export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64-static -L /usr/aarch64-linux-gnu'
      lint $target "$arm_std" "${ARM[@]}"
      # shellcheck disable=SC2086
      check "$target: build and link" cargo build $arm_std --locked --target $target "${ARM[@]/#/-p}"
      # shellcheck disable=SC2086
      check "$target: unit tests under qemu" \
        timeout 400 cargo test $arm_std --locked --target $target "${ARM_TESTS[@]/#/-p}" --lib --bins -- \
        "${ARM_SKIP[@]/#/--skip=}"
      ;;
    mac) for target in aarch64-apple-darwin x86_64-apple-darwin; do lint $target "$std" "${MAC[@]}"; done ;;
    win) lint x86_64-pc-windows-gnu "$std" "${WIN[@]}" ;;
    *) echo "unknown target $step (known: arm, mac, win)"; exit 2 ;;
  esac
done

printf 'not covered: %s\n' "${NOT_YET[@]}"
printf 'not covered: arm64 Linux: the test %s\n' "${ARM_SKIP[@]}"
printf '%d passed, %d failed, %d skipped\n' $passed $failed $((${#NOT_YET[@]} + ${#ARM_SKIP[@]}))
[ $failed = 0 ]
