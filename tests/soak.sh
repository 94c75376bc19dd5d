#!/bin/bash
# Many containers, one after another and at once, and many commands to one, and nothing left of them: processes, sockets,
# files, mounts, rows, and of the monitor descriptors and threads. Slow, so not part of `make test`.
#   tests/soak.sh [SEQUENTIAL [PARALLEL]]     (default: 200 and 50)
# Takes servin from $SERVIN_BIN, or from target/release or target/debug.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
sequential=${1:-200}
parallel=${2:-50}
servin=${SERVIN_BIN:-}
for candidate in "$root/target/release/servin" "$root/target/debug/servin"; do
  [ -n "$servin" ] || { [ -x "$candidate" ] && servin=$candidate; }
done
[ -n "$servin" ] || { echo "soak: no servin: cargo build --release -p servin" >&2; exit 2; }
export SERVIN_GUEST_DIR=${SERVIN_GUEST_DIR:-$root/target/guest}
work=$(mktemp -d)
export SERVIN_DATA_ROOT=$work/data
export TMPDIR=$work/tmp
mkdir "$TMPDIR"
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
  echo "soak: $*" >&2
  failures=$((failures + 1))
}

# Processes that have the data root open or were started with it; only those of this test.
processes() {
  for pid in /proc/[0-9]*; do
    [ "${pid#/proc/}" = $$ ] && continue
    if cat "$pid/environ" 2>/dev/null | tr '\0' '\n' | grep -qx "SERVIN_DATA_ROOT=$SERVIN_DATA_ROOT" &&
      [ "$(cat "$pid/comm" 2>/dev/null)" = servin-monitor ]; then
      echo "${pid#/proc/}"
    fi
  done
}

# What a run may not leave: everything below the data root but the store, the image, the templates and the log of events.
left() {
  (cd "$SERVIN_DATA_ROOT" && find . -mindepth 1 \
    \( -path './blobs/*' -o -path './roots/*' -o -path './templates' -o -path './events' -o -name 'store.db*' \) -prune \
    -o \( -path './containers/*' -o -path './run/*' -o -path './tmp/*' -o -type f -o -type s \) ! -name .lock -print)
  find "$TMPDIR" -mindepth 1
}

# Descriptors and threads of a process.
holds() {
  echo "$(ls "/proc/$1/fd" | wc -l) descriptors, $(ls "/proc/$1/task" | wc -l) threads"
}

check() {
  # Monitors tell the end before their machines are taken apart.
  for _ in $(seq 100); do
    [ -z "$(processes)" ] && break
    sleep 0.1
  done
  local found
  found=$(processes) && [ -z "$found" ] || fail "$1: processes are left: $found"
  found=$(left) && [ -z "$found" ] || fail "$1: files are left: $found"
  found=$("$servin" ps -aq) && [ -z "$found" ] || fail "$1: containers are left: $found"
  found=$(grep -c "$work" /proc/self/mounts) && [ "$found" != 0 ] && fail "$1: mounts are left"
}

# The first run makes the template.
[ "$("$servin" run --rm servin/base echo first)" = first ] || fail "the first run"
check "the first run"
began=$(date +%s)
for number in $(seq "$sequential"); do
  output=$("$servin" run --rm servin/base sh -c "echo $number; exit $((number % 100))")
  code=$?
  [ "$output" = "$number" ] && [ $code = $((number % 100)) ] || fail "run $number: \"$output\", code $code"
done
echo "soak: $sequential containers one after another in $(($(date +%s) - began)) s"
check "$sequential runs one after another"
began=$(date +%s)
pids=()
for number in $(seq "$parallel"); do
  "$servin" run --rm -m 32m servin/base sh -c "echo $number; exit $((number % 100))" >"$work/out.$number" 2>"$work/err.$number" &
  pids+=($!)
done
number=0
for pid in "${pids[@]}"; do
  number=$((number + 1))
  wait "$pid"
  code=$?
  output=$(cat "$work/out.$number")
  [ "$output" = "$number" ] && [ $code = $((number % 100)) ] ||
    fail "parallel run $number: \"$output\", code $code: $(cat "$work/err.$number")"
done
rm -f "$work"/out.* "$work"/err.*
echo "soak: $parallel containers at once in $(($(date +%s) - began)) s"
check "$parallel runs at once"
# One monitor that serves many commands keeps nothing of them.
"$servin" run -d --name box servin/base sleep 100000 >"$work/id" || fail "the container of many commands"
pid=$("$servin" inspect -f '{{.State.Pid}}' box)
"$servin" exec box true || fail "the first exec"
before=$(holds "$pid")
for number in $(seq 100); do
  [ "$("$servin" exec box echo "$number")" = "$number" ] || fail "exec $number"
done
pids=()
for number in $(seq 30); do
  "$servin" exec box sh -c "exit $number" &
  pids+=($!)
done
number=0
for pid_of_exec in "${pids[@]}"; do
  number=$((number + 1))
  wait "$pid_of_exec"
  [ $? = $number ] || fail "parallel exec $number"
done
"$servin" pause box >"$work/id" && "$servin" unpause box >"$work/id" || fail "pause and unpause"
"$servin" top box >"$work/id" || fail "top"
for _ in $(seq 100); do
  [ "$(holds "$pid")" = "$before" ] && break
  sleep 0.1
done
[ "$(holds "$pid")" = "$before" ] || fail "after many commands the monitor has $(holds "$pid"), and had $before"
"$servin" rm -f box >"$work/id" || fail "the removal of the container of many commands"
check "many commands"
"$servin" system check >"$work/found" || fail "system check: $(cat "$work/found")"
[ $failures = 0 ] && echo "soak: nothing is left"
exit $((failures > 0))
