#!/bin/bash
# Runs a command in the nested host: a Debian kernel with KVM under QEMU's TCG. In it /dev/kvm has the semantics of
# real hardware (AMD's SVM, or arm64's EL2) on any machine, and with --icount its clocks count instructions: 1 ns is
# one instruction.
#
#   tests/nested/run.sh [OPTIONS] -- COMMAND [ARG...]
#
#   --add FILE[:PATH]  put a file or a folder into the host (at PATH, else where it is here); a dynamic program
#                      brings its libraries. COMMAND itself is added when it is a path of a file here.
#   --arch ARCH        x86_64 (default) or aarch64: the host's CPU, and that of COMMAND
#   --env NAME=VALUE   set in COMMAND's environment, which is otherwise PATH, HOME and TERM only
#   --cwd PATH         COMMAND's working directory (default /)
#   --user             run COMMAND as the user `user` (1000, in group kvm) instead of root
#   --out DIR          what COMMAND leaves in /out is put into DIR
#   --disk MIB         a scratch disk, mounted as ext4 on /disk
#   --icount           count instructions: one CPU, a clock of 1 ns an instruction, a fixed kernel layout
#   --thp WHEN         transparent huge pages of the host: always, madvise (default) or never
#   --no-expedite      leave RCU as it is by default (else rcupdate.rcu_expedited=1)
#   --mem MIB          the host's memory (default 2048)
#   --cpus N           the host's CPUs (default 1)
#   --timeout S        deadline (default 300); QEMU is killed then
#   --plugin SPEC      load a plugin into QEMU: FILE[,NAME=VALUE...]
#   --console FILE     keep the host kernel's messages here
#
# Stdout and stderr are COMMAND's, the exit code too. 124: the deadline passed. 125: the host could not be
# started or died.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { printf 'nested: %s\n' "$*" >&2; }
die() { say "$*"; exit 125; }

arch=x86_64 mem=2048 cpus=1 deadline=300 icount= thp=madvise expedite=rcupdate.rcu_expedited=1 user= cwd=/ out= disk= console= plugin=
adds=() env=()
while [ $# -gt 0 ]; do
  case $1 in
    --icount) icount=1; shift; continue ;;
    --no-expedite) expedite=; shift; continue ;;
    --user) user=1; shift; continue ;;
    --) shift; break ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    --*) [ $# -ge 2 ] || die "$1 needs a value" ;;
    *) die "unknown argument $1 (the command comes after --)" ;;
  esac
  case $1 in
    --add) adds+=("$2") ;;
    --arch) arch=$2 ;;
    --env) env+=("$2") ;;
    --cwd) cwd=$2 ;;
    --out) out=$2 ;;
    --disk) disk=$2 ;;
    --thp) thp=$2 ;;
    --mem) mem=$2 ;;
    --cpus) cpus=$2 ;;
    --timeout) deadline=$2 ;;
    --console) console=$2 ;;
    --plugin) plugin=$2 ;;
    *) die "unknown option $1" ;;
  esac
  shift 2
done
[ $# -gt 0 ] || die "no command (see --help)"
[ -z "$icount" ] || [ "$cpus" = 1 ] || die "--icount is deterministic with one CPU only"
case $arch in
  x86_64) package=qemu-system-x86 machine=(-M q35 -cpu EPYC,+svm) console_name=ttyS0 ;;
  # Pointer authentication by a cheap hash: its real one is slow to emulate.
  aarch64)
    package=qemu-system-arm console_name=ttyAMA0
    machine=(-M virt,virtualization=on,gic-version=3 -cpu max,pauth-impdef=on) ;;
  *) die "no host of architecture $arch (known: x86_64, aarch64)" ;;
esac
command -v "qemu-system-$arch" >/dev/null || die "qemu-system-$arch is missing: apt-get install $package"
image=$("$here/image.sh" "$arch") || die "no image"
pack=$image/own/busybox

tmp=$(mktemp -d "${TMPDIR:-/tmp}/servin-nested.XXXXXX")
qemu=
finish() {
  [ -z "$qemu" ] || kill -KILL "$qemu" 2>/dev/null || true
  [ -z "$qemu" ] || wait "$qemu" 2>/dev/null || true
  [ -z "$console" ] || cp "$tmp/console" "$console" 2>/dev/null || true
  rm -rf "$tmp"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# What the caller adds: a second archive behind the first.
stage=$tmp/stage
mkdir -p "$stage/nested"
place() { # FILE PATH: a copy with everything above it, and the libraries of a program
  local to=$stage/${2#/}
  mkdir -p "$(dirname "$to")"
  [ -e "$to" ] || cp -RL --reflink=auto "$1" "$to"
}
libraries() { # FILE
  local lib
  [ "$(head -c 4 "$1" | tr -d '\0')" = $'\x7fELF' ] || return 0
  if [ "$arch" != "$(uname -m)" ]; then
    # No ldd here for these: the libraries are those of the cross compiler.
    { readelf -d "$1" 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; readelf -l "$1" 2>/dev/null |
      sed -n 's,.*interpreter: /lib/\(.*\)\],\1,p'; } | while read -r lib; do
      [ -e "$stage/lib/$lib" ] || [ ! -e "/usr/$arch-linux-gnu/lib/$lib" ] || {
        place "/usr/$arch-linux-gnu/lib/$lib" "/lib/$lib"
        libraries "/usr/$arch-linux-gnu/lib/$lib"
      }
    done
    return 0
  fi
  { ldd "$1" 2>/dev/null | grep -o '/[^ ]*' || true; } | while read -r lib; do place "$lib" "$lib"; done
}
add() { # FILE PATH
  [ -e "$1" ] || die "--add: there is no $1"
  local from
  from=$(realpath "$1")
  if [ -d "$from" ]; then
    mkdir -p "$stage/${2#/}"
    cp -a --reflink=auto "$from/." "$stage/${2#/}"
    find "$from" -type f -perm -u+x | while read -r file; do libraries "$file"; done
  else
    place "$from" "$2"
    libraries "$from"
  fi
}
for spec in "${adds[@]}"; do
  from=${spec%%:*} to=
  [ "$from" = "$spec" ] || to=${spec#*:}
  add "$from" "${to:-$(realpath -s "$from")}"
done
if [[ $1 == */* && -f $1 ]] && ! grep -qxF -- "$1" "$image/paths"; then
  program=$(realpath -s "$1")
  [ -e "$stage$program" ] || add "$program" "$program"
  shift
  set -- "$program" "$@"
fi

quote() { local q=\'\\\'\'; printf "'%s' " "${1//\'/$q}"; }
{
  printf 'cd '; quote "$cwd"; echo '|| exit 125'
  printf 'exec '
  if [ -n "$user" ]; then
    printf "su -p -s /bin/sh user -c 'exec \"\$0\" \"\$@\"' -- "
    home=/home/user
  else home=/root; fi
  printf 'env -i PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin TERM=dumb HOME=%s ' $home
  for pair in "${env[@]}"; do quote "$pair"; done
  for word in "$@"; do quote "$word"; done
  echo
} >"$stage/nested/command"
(cd "$stage" && find . | LC_ALL=C sort | "$pack" cpio -o -H newc -R 0:0) >"$tmp/extra.cpio" 2>/dev/null ||
  die "cannot pack the files"
rm -rf "$stage"
cat "$image/base.cpio" "$tmp/extra.cpio" >"$tmp/initrd"
rm "$tmp/extra.cpio"
size=$(($(stat -c %s "$tmp/initrd") >> 20))
[ $((size * 2 + 256)) -lt "$mem" ] || die "$size MiB of files do not fit a host of $mem MiB: raise --mem"

append="console=$console_name quiet panic=-1 nokaslr transparent_hugepage=$thp $expedite"
# A busy machine gives the emulator too little time for the kernel's proof that timer and I/O APIC work: it panics. And it
# measures a wrong frequency of the TSC then (822 MHz in place of 2,300), or gives it up in the middle of a test: without it
# there is one clock, and a second is a second. Where instructions are counted the clock is theirs, and the proof a part of
# what was measured before.
[ "$arch" != x86_64 ] || [ -n "$icount" ] || append+=' no_timer_check tsc=unstable unknown_nmi_panic oops=panic'
args=("${machine[@]}" -accel tcg -m "$mem" -smp "$cpus" -nodefaults -no-user-config -display none -no-reboot
  -kernel "$image/vmlinuz" -initrd "$tmp/initrd" -append "$append" -serial "file:$tmp/console"
  -device virtio-serial-pci -monitor "unix:$tmp/monitor,server=on,wait=off")
[ -z "$icount" ] || args+=(-icount "shift=0,sleep=off" -rtc "base=2026-01-01,clock=vm" -seed 1)
[ -z "$plugin" ] || args+=(-plugin "file=$plugin")
port() { args+=(-chardev "file,id=$1,path=$2" -device "virtserialport,chardev=$1,name=servin.$1"); }
# Pipes, because a file that the caller has open must be appended to, not opened again from its start.
mkfifo "$tmp/stdout" "$tmp/stderr"
exec 8<>"$tmp/stdout" 9<>"$tmp/stderr" # so that no side waits for the other to open
cat <"$tmp/stdout" 8>&- 9>&- & cats=$!
cat <"$tmp/stderr" >&2 8>&- 9>&- & cats="$cats $!"
port stdout "$tmp/stdout"
port stderr "$tmp/stderr"
port code "$tmp/code"
# QEMU changes its set of pending interrupts without a lock when KVM enters a guest of its guest (helper_vmrun, 7.2), while its
# timers do so in another thread: an interrupt may be forgotten. When it was that of the host's only clock event, the host
# stands still for ever. A byte every half second is an interrupt that no clock of the host has to do with, and with it QEMU
# looks at all of them again. Where instructions are counted, one thread does both.
if [ -z "$icount" ]; then
  mkfifo "$tmp/tick.in" "$tmp/tick.out"
  args+=(-chardev "pipe,id=tick,path=$tmp/tick" -device "virtserialport,chardev=tick,name=servin.tick")
fi
[ -z "$out" ] || port result "$tmp/result"
if [ -n "$disk" ]; then
  truncate -s "${disk}M" "$tmp/disk"
  PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F "$tmp/disk" || die "no scratch disk could be made (Debian package e2fsprogs)"
  args+=(-drive "file=$tmp/disk,format=raw,if=none,id=disk,cache=unsafe" -device virtio-blk-pci,drive=disk)
fi

# Whatever ends this script, even SIGKILL, ends QEMU.
started=$SECONDS
setpriv --pdeathsig KILL "qemu-system-$arch" "${args[@]}" </dev/null >"$tmp/qemu" 2>&1 8>&- 9>&- &
qemu=$!
setpriv --pdeathsig KILL sleep "$deadline" >/dev/null 2>&1 8>&- 9>&- &
alarm=$!
if [ -z "$icount" ]; then
  setpriv --pdeathsig KILL bash -c 'exec 7<>"$1"; while echo && sleep 0.5; do :; done >&7' - "$tmp/tick.in" \
    >/dev/null 2>&1 8>&- 9>&- &
fi
wait -n "$qemu" "$alarm" || true
if kill -0 "$qemu" 2>/dev/null; then
  # What the emulated CPU does, seen from outside: a host that stands still cannot say it. The last word, an interrupt that
  # cannot be masked, makes its kernel panic and print where it was.
  python3 "$here/look.py" "$tmp/monitor" >&2 || true
  kill -KILL "$qemu" 2>/dev/null || true
  disown "$qemu" 2>/dev/null || true
  wait "$qemu" 2>/dev/null || true
  qemu=
  say "the deadline of $deadline s passed; the host's last messages:"
  tail -n 80 "$tmp/console" >&2 || true
  exit 124
fi
kill "$alarm" 2>/dev/null || true
qemu=
exec 8>&- 9>&-
wait $cats 2>/dev/null || true
if [ ! -s "$tmp/code" ]; then
  say "the host ended after $((SECONDS - started)) s without an exit code"
  { cat "$tmp/qemu"; tail -n 15 "$tmp/console"; } >&2 2>/dev/null || true
  exit 125
fi
if [ -n "$out" ]; then
  mkdir -p "$out"
  tar -x -C "$out" --no-same-owner -f "$tmp/result" || die "the result is not a tar"
fi
exit "$(cat "$tmp/code")"
