#!/bin/bash
# An emulated arm64 host that was entered at EL2, booted once: the hypervisor contract on its KVM, the monitor's tests
# that need a kernel for arm64, and containers in microVMs there. Builds the arm64 programs; wanted before is
# target/guest-aarch64 (`SERVIN_ARCH=aarch64 scripts/guest.sh`), or target/guest on a machine that is arm64 itself.
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"
. "$root/scripts/cross.sh"
here=$root/tests/nested
guest=$root/target/guest$(away aarch64)
[ -f "$guest/Image" ] || { echo "no $guest/Image: SERVIN_ARCH=aarch64 scripts/guest.sh"; exit 1; }

# Their paths, as cargo tells them.
executables() { # KIND
  python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"] == (sys.argv[1] == "test"):
        print(message["executable"])' "$1"
}
work=$(mktemp -d "${TMPDIR:-/tmp}/servin-arm64.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
(
  cross_lock
  cross_toolchain
  cross_arm64
  # shellcheck disable=SC2086
  cargo build --locked --target $arm64 $arm64_std -p servin --message-format json-render-diagnostics |
    executables bin >"$work/servin"
  # shellcheck disable=SC2086
  cargo test --locked --target $arm64 $arm64_std -p servin-vmm --lib --no-run --message-format json-render-diagnostics |
    executables test >"$work/vmm"
  # Nobody else may replace them while they run.
  for name in servin vmm; do cp "$(head -n 1 "$work/$name")" "$work/$name.bin" || exit 1; done
) || { echo 'the arm64 programs were not built'; exit 1; }

cat >"$work/inside" <<'E2'
#!/bin/busybox sh
now() { cut -d' ' -f1 /proc/uptime; }
failed=0
echo "== the hypervisor contract, on KVM of $(uname -m); the host has been up for $(now) s"
/vmm --test-threads 1 --show-output hv::conformance:: boot:: layout:: memory:: snapshot:: || failed=1
container() { # START COMMAND...: runs it as the README does, and wants a start of this kind
  local want=$1 started code
  shift
  started=$(now)
  "$@" >/tmp/out 2>/tmp/err
  code=$?
  echo "$want start: exit code $code, said: $(cat /tmp/out); $(sed -n 's/^timing: first byte */first byte after /p' /tmp/err)"
  if [ $code = 7 ] && [ "$(cat /tmp/out)" = 'hi from aarch64' ] && grep -q "^timing: start  *$want\$" /tmp/err; then
    echo '1 passed, 0 failed, 0 skipped'
  else
    cat /tmp/err
    echo '0 passed, 1 failed, 0 skipped'
    failed=1
  fi
}
echo "== containers; the host has been up for $(now) s"
say='echo "hi from $(uname -m)"; exit 7'
container cold /servin run --timing servin/base sh -c "$say"
container warm /servin run --timing servin/base sh -c "$say"
container cold /servin run --timing --cpus 2 servin/base sh -c "[ \$(nproc) = 2 ] && $say"
echo "== the host ends after $(now) s"
exit $failed
E2
"$here/run.sh" --arch aarch64 --timeout "${LIMIT:-300}" --mem 2048 --env SERVIN_GUEST_DIR=/guest --env SERVIN_DATA_ROOT=/data \
  --add "$guest:/guest" --add "$work/servin.bin:/servin" --add "$work/vmm.bin:/vmm" --add "$work/inside:/inside" \
  -- /bin/busybox sh /inside
