#!/bin/bash
# The whole-machine tests in the nested host: the same test programs that run on the machine's own /dev/kvm. Wanted
# before: target/guest and the release build of servin (`make test` sees to both).
#
#   tests/nested/suite.sh [TEST-NAME-PART]
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root" || exit 2
target=${CARGO_TARGET_DIR:-$root/target}
servin=$target/release/servin
[ -x "$servin" ] || { echo "no $servin: cargo build --release -p servin"; exit 1; }
[ -f target/guest/vmlinux ] || { echo 'no guest kernel: make guest'; exit 1; }

# The test programs of one crate: its unit tests (lib) or its whole-machine tests (test).
programs() { # SOURCE-FOLDER KIND
  cargo test --workspace --locked --no-run --message-format json 2>/dev/null | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        target = message["target"]
        if sys.argv[2] in target["kind"] and target["src_path"].startswith(sys.argv[1]):
            print(message["executable"])' "$root/$1/" "$2"
}
vmm=$(programs vmm/src lib) || exit 1
machines=$(programs tests/tests test) || exit 1
[ -n "$vmm" ] && [ -n "$machines" ] || { echo 'the test programs were not built'; exit 1; }

status=0
run() { # TITLE TIMEOUT ARGS...
  local title=$1 limit=$2
  shift 2
  echo "== $title"
  "$here/run.sh" --timeout "$limit" "$@" || { echo "== $title: exit code $?"; status=1; }
}
[ $# -gt 0 ] || run 'the hypervisor contract on kvm-amd' 300 --mem 3072 \
  -- "$vmm" --test-threads 1 --show-output hv::
for program in $machines; do
  run "$(basename "${program%-*}")" 900 --mem 3072 --disk 2048 --cwd /disk --env TMPDIR=/disk \
    --env "SERVIN_BIN=$servin" --env "SERVIN_GUEST_DIR=$root/target/guest" \
    --add "$servin" --add "$root/target/guest" \
    -- "$program" --test-threads 1 --show-output "$@"
done
exit $status
