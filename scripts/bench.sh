#!/bin/bash
# What servin costs. Boot by instruction count in the nested host, held against benches/budget.json, and device
# throughput on this machine. Results: target/bench/*.json and the tables printed here.
#
#   scripts/bench.sh [boot] [boot-default] [devices] [podman]        (none named: boot devices podman)
#
# podman is podman beside servin in one run (scripts/podman.sh).
# boot-default is boot with the host's RCU and transparent huge pages as Debian has them, for comparison.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ $# -gt 0 ] || set -- boot devices podman
mkdir -p target/bench
results=$root/target/bench
servin=$target/release/servin
boot=$target/release/boot

boot_in_nested_host() { # NAME OPTIONS... -- PROGRAM-OPTIONS...
  local name=$1 options=()
  shift
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  rm -rf "$results/out"
  tests/nested/run.sh --icount --mem 3072 --timeout 900 "${options[@]}" --out "$results/out" \
    --env SERVIN_GUEST_DIR=/guest --add "$SERVIN_GUEST_DIR:/guest" --add "$servin:/servin" --add "$boot:/boot" \
    --add benches/budget.json:/budget.json -- /boot --servin /servin --instructions --json /out/boot.json "$@"
  local status=$?
  [ ! -f "$results/out/boot.json" ] || mv "$results/out/boot.json" "$results/$name.json"
  rm -rf "$results/out"
  return $status
}

case ${1:-} in
  :boot) boot_in_nested_host boot -- --budget /budget.json --runs "${RUNS:-5}"; exit ;;
  :boot-default) boot_in_nested_host boot-default --no-expedite --thp always -- --runs "${RUNS:-5}"; exit ;;
esac

steps_total=$(($# + 3))
step packages 900 bash -c 'packages "$@"' - "${packages_build[@]}" "${packages_guest[@]}" "${packages_nested[@]}" || exit 1
step 'guest' 3000 scripts/guest.sh || exit 1
step 'build' 1800 cargo build --release --locked -p servin -p servin-benches || exit 1
for what; do
  case $what in
    boot | boot-default) step "$what" 1000 "$root/scripts/bench.sh" ":$what" && sed 's/^/    /' "$logs/$what.log" ;;
    devices) step devices 600 "$target/release/devices" --json "$results/devices.json" &&
      sed 's/^/    /' "$logs/devices.log" ;;
    podman) step podman 1500 scripts/podman.sh && sed 's/^/    /' "$logs/podman.log" ;;
    *) echo "unknown benchmark $what (known: boot, boot-default, devices, podman)"; exit 2 ;;
  esac
done
[ $steps_failed = 0 ]
