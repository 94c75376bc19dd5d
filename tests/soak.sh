#!/bin/sh
# Many containers, one after another and at once, many commands to one, many clones of one template, and nothing left of
# them: processes, sockets, files, mounts, rows, and of a monitor descriptors and threads. Clones share no identifier and
# no random number, and most of their memory. Slow, so not part of `make test`.
#
#   tests/soak.sh [--nested | --here] [SEQUENTIAL [PARALLEL [CLONES]]]     (default: 1000, 50 and 100)
#
# Where /dev/kvm can be used that is used; else, or with --nested, the nested host (tests/nested/run.sh), where a start takes
# up to some seconds. Takes servin from $SERVIN_BIN, or from target/release or target/debug. POSIX sh, for the nested host
# has busybox only.
set -u
where=
case ${1:-} in --nested | --here) where=$1 && shift ;; esac
sequential=${1:-1000} parallel=${2:-50} clones=${3:-100}
# The most that any clone may have to itself while its program sleeps, in KiB. (Before it runs anything it is to be 2 MiB,
# which nobody sees from outside; docs/boot.md tells what it is made of.)
most_kib=2200

if [ "$where" != --here ]; then
  root=$(cd "$(dirname "$0")/.." && pwd) || exit 2
  servin=${SERVIN_BIN:-}
  for candidate in "${CARGO_TARGET_DIR:-$root/target}/release/servin" "${CARGO_TARGET_DIR:-$root/target}/debug/servin"; do
    [ -n "$servin" ] || { [ -x "$candidate" ] && servin=$candidate; }
  done
  [ -n "$servin" ] || { echo "soak: no servin: cargo build --release -p servin" >&2; exit 2; }
  export SERVIN_BIN="$servin" SERVIN_GUEST_DIR="${SERVIN_GUEST_DIR:-$root/target/guest}"
  [ -f "$SERVIN_GUEST_DIR/vmlinux" ] || { echo "soak: no guest kernel: make guest" >&2; exit 2; }
  if [ "$where" = --nested ] || ! { [ -r /dev/kvm ] && [ -w /dev/kvm ]; }; then
    echo "soak: in the nested host"
    exec "$root/tests/nested/run.sh" --timeout 20000 --mem 3072 --disk 4096 --cwd /disk --env TMPDIR=/disk \
      --env SERVIN_BIN=/servin --env SERVIN_GUEST_DIR=/guest --add "$servin:/servin" --add "$SERVIN_GUEST_DIR:/guest" \
      --add "$0:/soak.sh" -- /bin/busybox sh /soak.sh --here "$sequential" "$parallel" "$clones"
  fi
fi

servin=$SERVIN_BIN
work=$(mktemp -d)
export SERVIN_DATA_ROOT="$work/data" TMPDIR="$work/tmp"
mkdir "$TMPDIR" "$work/out"
failures=0

say() { echo "soak: $*"; }
fail() {
  echo "soak: FAILED: $*" >&2
  failures=$((failures + 1))
}
now() { date +%s; }

# Processes of this test's servin: those with its data root in their environment.
processes() {
  for pid in /proc/[0-9]*; do
    # What ends meanwhile is none.
    [ "$(cat "$pid/comm" 2>/dev/null)" = servin-monitor ] || continue
    { tr '\0' '\n' <"$pid/environ"; } 2>/dev/null | grep -qx "SERVIN_DATA_ROOT=$SERVIN_DATA_ROOT" && echo "${pid#/proc/}"
  done
}
finish() {
  for pid in $(processes); do kill -9 "$pid" 2>/dev/null; done
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

# What a run may not leave: everything below the data root but the store and its reserve, the image, the templates and the log of
# events.
left() {
  (cd "$SERVIN_DATA_ROOT" && find . -mindepth 1 \
    \( -path './blobs/*' -o -path './roots/*' -o -path './templates' -o -path './events' -o -path './reserve' -o -name 'store.db*' \) -prune \
    -o \( -path './containers/*' -o -path './run/*' -o -path './tmp/*' -o -type f -o -type s \) ! -name .lock -print)
  find "$TMPDIR" -mindepth 1
  # Half a template.
  find "$SERVIN_DATA_ROOT/templates" -mindepth 1 -maxdepth 1 -name '*.new' 2>/dev/null
}

# Descriptors and threads of a process.
holds() {
  echo "$(ls "/proc/$1/fd" | wc -l) descriptors, $(ls "/proc/$1/task" | wc -l) threads"
}

# Sockets of the data root that some process of the host still has.
sockets() { grep -c "$work" /proc/net/unix; }

check() { # WHEN
  # Monitors tell the end before their machines are taken apart.
  tries=0
  while [ -n "$(processes)" ] && [ $tries -lt 300 ]; do
    tries=$((tries + 1))
    sleep 0.1
  done
  found=$(processes)
  [ -z "$found" ] || fail "$1: processes are left: $found"
  found=$(left)
  [ -z "$found" ] || fail "$1: files are left: $found"
  found=$("$servin" ps -aq)
  [ -z "$found" ] || fail "$1: containers are left: $found"
  found=$(sockets)
  [ "$found" = 0 ] || fail "$1: $found sockets are left"
  found=$(grep -c "$work" /proc/self/mounts)
  [ "$found" = 0 ] || fail "$1: mounts are left"
  say "$1: checked; the host has $(cut -f 1 /proc/sys/fs/file-nr) files open, the store is $(size) KiB"
}
size() { du -ck "$SERVIN_DATA_ROOT"/store.db* | tail -n 1 | cut -f 1; }

# One that came first makes the template.
say "a first run, which leaves the template"
[ "$("$servin" run --rm servin/base echo first)" = first ] || fail "the first run"
[ "$("$servin" run --rm -m 32m servin/base echo first)" = first ] || fail "the first small run"
check "the first runs"

# Each of them is a clone that tells what must be its own.
say "$sequential containers one after another"
own='read uuid < /proc/sys/kernel/random/uuid; read boot < /proc/sys/kernel/random/boot_id; read host < /etc/hostname
  echo uuid $uuid; echo boot $boot; echo host $host; date "+date %s"; od -An -tx1 -N 16 /dev/urandom'
differ() {
  twice=$(sort "$work/own" | uniq -d)
  [ -z "$twice" ] || fail "clones share $twice"
}
: >"$work/own"
began=$(now)
ended=$began
number=0
while [ $number -lt "$sequential" ]; do
  number=$((number + 1))
  started=$ended date=0 lines=0
  "$servin" run --rm --timing servin/base sh -c "$own; exit $((number % 100))" >"$work/one" 2>"$work/err"
  code=$?
  ended=$(now)
  # No process of its own for any of this: there are a thousand.
  while read -r word value; do
    lines=$((lines + 1))
    case $word in date) date=$value ;; *) echo "$word $value" >>"$work/own" ;; esac
  done <"$work/one"
  [ $code = $((number % 100)) ] && [ $lines = 5 ] ||
    fail "run $number: code $code, \"$(cat "$work/one")\", $(cat "$work/err")"
  warm=no
  while read -r line; do
    case $line in "timing: start"*" warm") warm=yes ;; esac
  done <"$work/err"
  [ $warm = yes ] || fail "run $number is no clone"
  { [ "$date" -ge "$started" ] && [ "$date" -le "$ended" ]; } ||
    fail "run $number: its clock shows $date, it ran from $started to $ended"
  if [ $((number % 100)) = 0 ]; then
    differ
    say "  $number, $((ended - began)) s"
  fi
done
differ
say "$sequential containers one after another in $((ended - began)) s: of $(wc -l <"$work/own") identifiers, boot ids, names and" \
  "random strings $(sort -u "$work/own" | wc -l) differ"
check "one after another"

if [ "$parallel" != 0 ]; then
  say "$parallel containers at once"
  began=$(now)
  number=0
  pids=
  while [ $number -lt "$parallel" ]; do
    number=$((number + 1))
    "$servin" run --rm -m 32m servin/base sh -c "echo $number; exit $((number % 100))" \
      >"$work/out/$number" 2>"$work/out/$number.err" &
    pids="$pids $!"
  done
  number=0
  for pid in $pids; do
    number=$((number + 1))
    wait "$pid"
    code=$?
    output=$(cat "$work/out/$number")
    [ "$output" = "$number" ] && [ $code = $((number % 100)) ] ||
      fail "parallel run $number: \"$output\", code $code: $(cat "$work/out/$number.err")"
  done
  say "$parallel containers at once in $(($(now) - began)) s"
  check "at once"

  # One monitor that serves many commands keeps nothing of them.
  say "130 commands and a pause for one container"
  "$servin" run -d --name box servin/base sleep 100000 >"$work/id" || fail "the container of many commands"
  monitor=$("$servin" inspect -f '{{.State.Pid}}' box)
  "$servin" exec box true || fail "the first exec"
  before=$(holds "$monitor")
  for number in $(seq 100); do
    [ "$("$servin" exec box echo "$number")" = "$number" ] || fail "exec $number"
  done
  pids=
  for number in $(seq 30); do
    "$servin" exec box sh -c "exit $number" &
    pids="$pids $!"
  done
  number=0
  for pid in $pids; do
    number=$((number + 1))
    wait "$pid"
    [ $? = $number ] || fail "parallel exec $number"
  done
  { "$servin" pause box && "$servin" unpause box; } >"$work/id" || fail "pause and unpause"
  "$servin" top box >"$work/id" || fail "top"
  tries=0
  while [ "$(holds "$monitor")" != "$before" ] && [ $tries -lt 300 ]; do
    tries=$((tries + 1))
    sleep 0.1
  done
  [ "$(holds "$monitor")" = "$before" ] || fail "after many commands the monitor has $(holds "$monitor"), and had $before"
  "$servin" rm -f box >"$work/id" || fail "the removal of the container of many commands"
  say "the monitor has $before, as before"
  check "many commands"
fi

# KiB that each of them has to itself, by the kernel's account; guest memory is told by its size.
if [ "$clones" != 0 ]; then
  say "$clones clones of one template that run at once"
  began=$(now)
  number=0
  while [ $number -lt "$clones" ]; do
    number=$((number + 1))
    "$servin" run -d --rm --name "clone$number" servin/base sleep 100000 >"$work/id" || fail "clone $number"
  done
  say "$clones clones in $(($(now) - began)) s"
  processes >"$work/pids"
  found=$(wc -l <"$work/pids")
  [ "$found" = "$clones" ] || fail "$found clones run"
  while read -r pid; do
    awk '$1 == "Size:" { guest = $2 >= 92160 }
      /^Private_/ { if (guest) inner += $2; else outer += $2 }
      /^Pss:/ { share += $2 }
      END { print inner + outer, inner + 0, outer + 0, share + 0 }' "/proc/$pid/smaps"
  done <"$work/pids" >"$work/memory"
  say "$(awk -v most="$most_kib" '{ all += $1; inner += $2; outer += $3; share += $4; if ($1 > top) top = $1 }
    END { printf "memory of a clone that sleeps: %d KiB its own (%d guest, %d monitor; at most %d), %d with its share",
      all / NR, inner / NR, outer / NR, top, share / NR }' "$work/memory")"
  say "what one of them has to itself, in KiB:"
  awk '$1 ~ /^[0-9a-f]+-[0-9a-f]+$/ { name = $6 ? $6 : "anonymous" } /^Private_/ { all[name] += $2 }
    END { for (name in all) print all[name], name }' "/proc/$(head -n 1 "$work/pids")/smaps" | sort -rn | head -n 8
  awk -v most="$most_kib" '$1 > most { bad = 1 } END { exit bad }' "$work/memory" ||
    fail "a clone has more than $most_kib KiB to itself"
  number=0
  while [ $number -lt "$clones" ]; do
    number=$((number + 1))
    "$servin" rm -f "clone$number" >"$work/id" || fail "the removal of clone $number"
  done
  check "clones"
fi

"$servin" system check >"$work/found" || fail "system check: $(cat "$work/found")"
if [ $failures = 0 ]; then
  say "PASSED: nothing is left"
else
  say "FAILED: $failures checks"
fi
exit $((failures > 0))
