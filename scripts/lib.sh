# Shared by the scripts of this folder: numbered steps with a deadline, a log each and durations; Debian
# packages when they are missing; the cache. To be sourced by bash.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/servin
target=${CARGO_TARGET_DIR:-$root/target}
logs=$root/target/log
mkdir -p "$logs" "$cache" || exit 2
export CARGO_TERM_COLOR=never
[ -n "${CARGO_INCREMENTAL:-}" ] || [ "${CI:-}" != true ] || export CARGO_INCREMENTAL=0

steps_total=${steps_total:-0} steps_done=0 steps_failed=0
steps_table=()

# A length of time for people: 0.4 s, 12 s, 3 min 05 s. Takes milliseconds.
span() {
  if [ "$1" -lt 10000 ]; then printf '%d.%d s' $(($1 / 1000)) $(($1 % 1000 / 100))
  elif [ "$1" -lt 60000 ]; then printf '%d s' $(($1 / 1000))
  else printf '%d min %02d s' $(($1 / 60000)) $(($1 / 1000 % 60)); fi
}
now() { date +%s%3N; }

# The lines of a log that say what failed, each with a few that follow it, and what a machine that stood still was seen
# to do: a long log's end seldom tells.
complaints() { # LOG
  grep -aE -A 6 '^error(\[|:)|panicked at |\.\.\. FAILED$|^ *(FAIL|TIMEOUT|SIG[A-Z]+) \[|^FAILED' "$1" |
    grep -avE '^--$|^stuck: |RUST_BACKTRACE' | head -n 60
  grep -a '^stuck: ' "$1" | head -n 80
}

# step NAME SECONDS COMMAND...: runs it with a deadline, its output in target/log/NAME.log. Says what is going
# on: on a terminal the newest line of the log, elsewhere one line in 30 s. A failure shows the log's end.
# A step whose log says that its result came from a cache is marked (cached).
step() {
  local name=$1 limit=$2 log started ended status=0 pid note= shown=0
  shift 2
  steps_done=$((steps_done + 1))
  log=$logs/$(tr -c 'a-zA-Z0-9\n' '-' <<<"$name").log
  printf '==> [%d/%d] %s\n' "$steps_done" "$steps_total" "$name"
  started=$(now)
  timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  step_pid=$pid
  while kill -0 $pid 2>/dev/null; do
    sleep 0.1
    if [ -t 1 ]; then
      shown=1
      printf '\r\033[K    %s %s' "$(span $(($(now) - started)))" "$(tail -n 1 "$log" | tr -d '\r\033' | cut -c1-90)"
      sleep 0.4
    elif [ $(($(now) - started)) -ge $(((shown + 1) * 30000)) ]; then
      shown=$((shown + 1))
      printf '    ... %s: %s\n' "$(span $((shown * 30000)))" "$(tail -n 1 "$log" | tr -d '\r\033' | cut -c1-100)"
    fi
  done
  wait $pid || status=$?
  step_pid=
  [ ! -t 1 ] || [ $shown = 0 ] || printf '\r\033[K'
  ended=$(($(now) - started))
  if [ $status = 0 ]; then
    ! grep -qiE '\b(cached|cache has|from the cache|up to date)\b' "$log" || note=' (cached)'
    printf '    done in %s%s\n' "$(span $ended)" "$note"
    steps_table+=("$(printf 'ok    %-46s %s%s' "$name" "$(span $ended)" "$note")")
  else
    steps_failed=$((steps_failed + 1))
    [ $status != 124 ] || note=", its limit of $limit s passed"
    [ $status != 137 ] || note=", killed"
    printf '    FAILED after %s%s (exit code %d). What went wrong, and the end of %s:\n' "$(span $ended)" "$note" $status "$log"
    { complaints "$log"; tail -n 20 "$log"; } | cut -c1-400 | sed 's/^/    | /'
    steps_table+=("$(printf 'FAIL  %-46s %s' "$name" "$(span $ended)$note")")
  fi
  return $status
}

# The step in hand ends when this script does.
step_pid=
trap '[ -z "$step_pid" ] || kill "$step_pid" 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Installs the Debian packages among its arguments that are missing; silent when none is.
packages() {
  local missing=() package sudo=()
  command -v dpkg-query >/dev/null || { echo "no dpkg here: install what corresponds to: $*"; return 1; }
  for package; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || { echo "nothing is missing"; return 0; }
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "missing: ${missing[*]}. Install them as root."; return 1; }
    sudo=(sudo --)
  fi
  echo "installing ${missing[*]}"
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" ||
    { "${sudo[@]}" apt-get update &&
      "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; }
}
export -f packages

# Makes kept build output this clone's: starts it anew when other clones left more than so many MiB in it, and forgets
# what another built of this workspace, for programs name their own clone's files.
own_build_output() { # DIRECTORY MIB
  [ "$(du -sm "$1" 2>/dev/null | cut -f1)" -lt "$2" ] 2>/dev/null || rm -rf "$1"
  [ "$(cat "$1/clone" 2>/dev/null)" != "$root" ] || return 0
  find "$1" -path '*/.fingerprint/servin*' -prune -exec rm -rf {} + 2>/dev/null
  mkdir -p "$1" && printf '%s\n' "$root" >"$1/clone"
}

# What tells the guest of another architecture's machine from this one's: nothing for this one's.
away() { [ "$1" = "$(uname -m)" ] || printf -- '-%s' "$1"; }

# What each kind of work needs beyond a Rust toolchain, gcc and python3.
packages_build=(gcc g++ libc6-dev make)
packages_guest=(binutils bc bison flex libelf-dev patch xz-utils busybox-static linux-source-6.12)
packages_nested=(qemu-system-x86 xz-utils e2fsprogs)
packages_tests=(erofs-utils e2fsprogs cpio)
packages_arm64=(qemu-system-arm qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross rustc-web cargo-web
  libstd-rust-web-dev)
packages_tools=(python3-venv python3-pip)

# The guest of this tree, wherever the binaries lie.
export SERVIN_GUEST_DIR=${SERVIN_GUEST_DIR:-$root/target/guest}
