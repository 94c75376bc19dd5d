#!/bin/bash
# Checks and lints, for targets other than this machine's, the crates that compile there today, links those of arm64,
# and runs unit tests: those for arm64 under qemu's user mode, those for Windows under wine. (tests/nested/arm64.sh runs
# whole machines.) The toolchain: cross.sh.
#
#   scripts/cross-check.sh [arm] [mac] [win]        (none named: all)
#
# Ends with `N passed, N failed, N skipped`; skipped are the crates named in NOT_YET, and what needs wine where there is none.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$root/scripts/cross.sh"

# ---- what is covered: the one place to change when a crate gets to a target ---------------------------------------
ARM=(servin-init servin-guest-kernel servin-devices servin-vmm servin-engine servin)
ARM_TESTS=(servin-init servin-guest-kernel servin-devices)
# Tests that start their own program again: the emulator is not in the kernel, so an arm64 program cannot be started.
# Those of servin-vmm need a kernel for arm64, and have the emulated host.
# An empty datagram does not arrive under the emulator (it seems to refuse the pointer of an empty slice); it does on x86_64. Why was not proven.
ARM_SKIP=(no_descriptor_and_no_thread_is_left_behind datagrams_find_their_way_empty_ones_too)
MAC=(servin-init servin-guest-kernel servin-devices servin-vmm servin-engine servin)
# Their tests compile, for whoever has a Mac to run them.
MAC_TESTS=(servin-devices)
WIN=(servin-init servin-guest-kernel servin-devices servin-vmm servin)
# Their tests run under wine.
WIN_TESTS=(servin-devices servin-vmm)
# What wine does otherwise than Windows: it shuts a socket down before it closes it, so the other side sees an end where
# Windows resets, and it keeps to itself that a datagram came to a closed port (docs/backends.md).
WIN_SKIP=(
  a_guest_that_resets_is_seen_as_a_reset_by_the_server
  a_server_that_resets_is_seen_as_a_reset_by_the_guest
  who_comes_to_a_published_port_where_nobody_listens_in_the_guest_is_reset
  connections_beyond_the_most_are_refused_and_a_reset_card_forgets_all
  a_host_that_went_away_without_reading_resets_the_guest
  a_closed_port_of_a_datagram_is_said_so
)
NOT_YET=(
  'macOS: taps and bench --against (servin refuses them there), the filter of system calls (there is none)'
  'Windows: the parts of servin-devices that hold Unix sockets: shared networks, passt'
  'Windows: servin-engine: it names KVM and Linux system calls (servin says so there)'
)

[ $# -gt 0 ] || set -- arm mac win
log=$cross/log
cross_lock
needed=(rustc-web cargo-web rust-web-src rust-web-clippy libstd-rust-web-dev gcc libc6-dev)
case " $* " in *' arm '*) needed+=("${packages_arm64[@]}") ;; esac
case " $* " in *' win '*) needed+=(gcc-mingw-w64-x86-64) ;; esac
packages "${needed[@]}" || exit 1
cross_toolchain
echo "using $($RUSTC -V)"
passed=0 failed=0 skipped=0

check() { # LABEL COMMAND...
  local label=$1 file started
  shift
  file=$log/$(tr -c 'a-zA-Z0-9\n' '-' <<<"$label").log started=$(now)
  if "$@" >"$file" 2>&1; then
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
lint_tests() { # TARGET BUILD-STD CRATES...
  local target=$1 std=$2
  shift 2
  # shellcheck disable=SC2086
  check "$target: clippy of tests" /usr/bin/cargo-clippy clippy $std,test --locked --target "$target" "${@/#/-p}" --lib --tests \
    -- -D warnings
}
std='-Zbuild-std=std,panic_abort'

# Sets up wine, without a display, with a home of its own: $wine is the program. False, and a line that says why, where it
# cannot be had.
cross_wine() {
  packages wine64 >"$log/wine.log" 2>&1
  wine=$(PATH=$PATH:/usr/lib/wine command -v wine64) || { echo 'SKIP  there is no wine64 to run Windows programs'; return 1; }
  export WINEPREFIX=$cross/wine WINEDEBUG=-all WINEDLLOVERRIDES='mscoree=;mshtml=;winemenubuilder.exe='
  unset DISPLAY WAYLAND_DISPLAY
  # The standard library takes random bytes from a DLL that wine 8 does not have: it gets one, which asks the one that it has.
  mkdir -p "$cross/dll"
  cat >"$cross/dll/bcryptprimitives.c" <<'C'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T len) { return SystemFunction036(data, (ULONG)len); }
C
  export WINEPATH="Z:${cross//\//\\}\\dll"
  if ! x86_64-w64-mingw32-gcc -shared -O1 -o "$cross/dll/bcryptprimitives.dll" "$cross/dll/bcryptprimitives.c" -ladvapi32 \
    >>"$log/wine.log" 2>&1 || ! timeout 300 "$wine" wineboot -i >>"$log/wine.log" 2>&1; then
    echo "SKIP  wine does not start here: $(tail -n 1 "$log/wine.log")"
    return 1
  fi
  # One server for all that follows: a program that starts while the server of the one before goes away fails without a word.
  { PATH=$PATH:/usr/lib/wine timeout 60 wineserver64 -w; PATH=$PATH:/usr/lib/wine wineserver64 -p; } >>"$log/wine.log" 2>&1 8>&-
  trap 'PATH=$PATH:/usr/lib/wine wineserver64 -k 2>/dev/null' EXIT
}

# What the command says on a Windows without WHP.
windows_command() {
  local servin=$CARGO_TARGET_DIR/x86_64-pc-windows-gnu/debug/servin.exe
  # shellcheck disable=SC2086
  cargo build $std --locked --target x86_64-pc-windows-gnu -p servin || return 1
  says 0 '^Servin [0-9]' "$servin" --version &&
    says 1 '^FAIL  hypervisor .*Windows Hypervisor Platform is not there .*HypervisorPlatform' "$servin" doctor &&
    says 125 '^servin: servin run does not run on windows yet' "$servin" run servin/base true &&
    says 1 '^servin: unknown command' "$servin" frobnicate
}
says() { # CODE PATTERN PROGRAM ARGS...
  local code=$1 pattern=$2 text status=0
  shift 2
  text=$(timeout 60 "$wine" "$@" 2>&1) || status=$?
  printf '%s\nexit code %d\n' "$text" $status
  [ $status = "$code" ] && grep -qE "$pattern" <<<"$text" || { echo "error: wanted exit code $code and $pattern"; return 1; }
}

for step; do
  case $step in
    arm)
      cross_arm64
      target=$arm64 arm_std=$arm64_std
      lint $target "$arm_std" "${ARM[@]}"
      # shellcheck disable=SC2086
      check "$target: build and link" cargo build $arm_std --locked --target $target -p servin
      # shellcheck disable=SC2086
      check "$target: unit tests under qemu" \
        timeout 900 cargo test $arm_std --locked --target $target "${ARM_TESTS[@]/#/-p}" --lib --bins -- \
        "${ARM_SKIP[@]/#/--skip=}"
      ;;
    mac)
      cross_mac
      lint aarch64-apple-darwin "$std" "${MAC[@]}"
      lint x86_64-apple-darwin "$std" "${MAC[@]}"
      lint_tests aarch64-apple-darwin "$std" "${MAC_TESTS[@]}"
      ;;
    win)
      lint x86_64-pc-windows-gnu "$std" "${WIN[@]}"
      if cross_wine; then
        # shellcheck disable=SC2086
        CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=$wine check 'x86_64-pc-windows-gnu: unit tests under wine' \
          timeout 900 cargo test $std --locked --target x86_64-pc-windows-gnu "${WIN_TESTS[@]/#/-p}" --lib --bins -- \
          "${WIN_SKIP[@]/#/--skip=}"
        check 'x86_64-pc-windows-gnu: the command under wine' windows_command
      else
        skipped=$((skipped + 2))
      fi
      ;;
    *) echo "unknown target $step (known: arm, mac, win)"; exit 2 ;;
  esac
done

printf 'not covered: %s\n' "${NOT_YET[@]}"
printf 'not covered: arm64 Linux: the test %s\n' "${ARM_SKIP[@]}"
printf 'not covered: Windows: the test %s\n' "${WIN_SKIP[@]}"
printf '%d passed, %d failed, %d skipped\n' $passed $failed $((${#NOT_YET[@]} + ${#ARM_SKIP[@]} + ${#WIN_SKIP[@]} + skipped))
[ $failed = 0 ]
