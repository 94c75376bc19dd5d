#!/bin/bash
# Builds the image servin/base into target/guest/: base.tar (a `docker save` tar with an OCI layout inside) and base.id
# (the image's id, by which the engine sees that a new version is there). Needs python3, no root, and no network.
#
#   engine/base/build.sh [DIR]
#
# SERVIN_MINIROOTFS     Alpine's alpine-minirootfs-VERSION-ARCH.tar.gz, to be the image as it is
# SERVIN_BUSYBOX        a static busybox            (default: Debian's busybox-static, installed or downloaded)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec python3 "$here/image.py" "${1:-$(dirname "$(dirname "$here")")/target/guest}"
