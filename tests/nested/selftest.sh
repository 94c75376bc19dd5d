#!/bin/bash
# Checks the nested host itself: output, exit codes, deadline, results, libraries, a user, a disk, and that a
# virtual machine runs in it. Prints a line per check, then `N passed, N failed, N skipped`.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
check() { # NAME EXPECTED-CODE EXPECTED-STDOUT ARGS...
  local name=$1 code=$2 want=$3 got rc
  shift 3
  got=$("$here/run.sh" --timeout 120 "$@" 2>"$tmp/err")
  rc=$?
  if [ $rc = "$code" ] && [ "$got" = "$want" ]; then
    echo "ok   $name"; passed=$((passed + 1))
  else
    echo "FAIL $name: code $rc, output: $got"; sed 's/^/     /' "$tmp/err"; failed=$((failed + 1))
  fi
}
gcc -O1 -Wall -Werror -o "$tmp/probe" "$here/probe.c" || exit 1
printf 'a file\n' >"$tmp/file"

check 'a dynamic program runs a virtual machine' 0 'guest says 42' --add "$tmp/probe:/probe" -- \
  sh -c '/probe | sed "s/ after.*//"'
check 'counting instructions, a virtual machine runs too' 0 'guest says 42' --icount --add "$tmp/probe:/probe" -- \
  sh -c '/probe | sed "s/ after.*//"'
check 'an unprivileged user has /dev/kvm, a disk and results; a signal is 128 and its number' 137 \
  "user it's 1" --user --disk 16 --out "$tmp/out" --env "A=it's" --add "$tmp/file:/data/file" -- \
  sh -c 'test -w /dev/kvm && touch /disk/x && cp /data/file /out/r && echo "$(id -un) $A $(ls /disk | grep -c x)" && kill -9 $$'
check 'results come out' 0 '' --out "$tmp/out2" -- true
[ "$(cat "$tmp/out/r")" = 'a file' ] || { echo 'FAIL the result is missing'; failed=$((failed + 1)); }
check 'the deadline ends a command' 124 '' --timeout 8 -- sleep 100

echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
