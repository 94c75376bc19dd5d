#!/bin/bash
# What servin costs. Boot by instruction count in the nested host, held against benches/budget.json, a container's TCP
# beside passt's, there too, and device throughput on this machine. Results: target/bench/*.json and the tables printed here.
#
#   scripts/bench.sh [boot] [boot-default] [network] [devices] [podman]        (none named: boot network devices podman)
#
# podman is podman beside servin in one run (scripts/podman.sh).
# boot-default is boot with the host's RCU and transparent huge pages as Debian has them, for comparison.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ $# -gt 0 ] || set -- boot network devices podman
mkdir -p target/bench
results=$root/target/bench
servin=$target/release/servin
boot=$target/release/boot
network=$target/release/network
passt=$(command -v passt || echo /usr/bin/passt)

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

# passt wants an interface with an address and a route: a tap that nobody holds is one. What is measured goes by lo. Nor
# does it stay root where it is started as root, so that all is done by a user.
network_in_nested_host() {
  local options=() file
  for file in "$passt" "$passt.avx2"; do [ ! -f "$file" ] || options+=(--add "$file:/usr/bin/${file##*/}"); done
  rm -rf "$results/out"
  tests/nested/run.sh --icount --mem 3072 --timeout 1500 "${options[@]}" --out "$results/out" --env SERVIN_GUEST_DIR=/guest \
    --add "$SERVIN_GUEST_DIR:/guest" --add "$servin:/servin" --add "$network:/network" -- /bin/busybox sh -c '
      modprobe tun && tunctl -t uplink >/dev/null && ip address add 198.51.100.77/24 dev uplink && ip link set uplink up &&
      ip route add default via 198.51.100.1 && chmod 777 /out && export HOME=/home/user TMPDIR=/home/user &&
      exec su -p -s /bin/sh user -c "exec /network $*"' - \
    --servin /servin --passt /usr/bin/passt --address 198.51.100.77 --json /out/network.json
  local status=$?
  [ ! -f "$results/out/network.json" ] || mv "$results/out/network.json" "$results/network.json"
  rm -rf "$results/out"
  return $status
}

case ${1:-} in
  :network) network_in_nested_host; exit ;;
  :boot) boot_in_nested_host boot -- --budget /budget.json --runs "${RUNS:-5}"; exit ;;
  :boot-default) boot_in_nested_host boot-default --no-expedite --thp always -- --runs "${RUNS:-5}"; exit ;;
esac

steps_total=$(($# + 3))
[[ " $* " != *' network '* ]] || packages_nested+=(passt)
step packages 900 bash -c 'packages "$@"' - "${packages_build[@]}" "${packages_guest[@]}" "${packages_nested[@]}" || exit 1
step 'guest' 3000 scripts/guest.sh || exit 1
step 'build' 1800 cargo build --release --locked -p servin -p servin-benches || exit 1
for what; do
  case $what in
    boot | boot-default) step "$what" 1000 "$root/scripts/bench.sh" ":$what" && sed 's/^/    /' "$logs/$what.log" ;;
    network) step network 1600 "$root/scripts/bench.sh" :network && sed 's/^/    /' "$logs/network.log" ;;
    devices) step devices 600 "$target/release/devices" --json "$results/devices.json" &&
      sed 's/^/    /' "$logs/devices.log" ;;
    podman) step podman 1500 scripts/podman.sh && sed 's/^/    /' "$logs/podman.log" ;;
    *) echo "unknown benchmark $what (known: boot, boot-default, network, devices, podman)"; exit 2 ;;
  esac
done
[ $steps_failed = 0 ]
