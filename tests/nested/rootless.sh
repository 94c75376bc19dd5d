#!/bin/busybox sh
# Inside the nested host, as an ordinary user in the group kvm: a container, and a volume whose files stay the user's.
#   rootless.sh SERVIN
servin=$1
mkdir -p /tmp/share && echo from-the-host >/tmp/share/old || exit 1
said=$("$servin" run --rm -v /tmp/share:/data servin/base sh -c 'id -u; cat /data/old; echo from-the-guest > /data/new') || exit 1
[ "$said" = "0
from-the-host" ] || { echo "the container said: $said"; exit 1; }
[ "$(stat -c %u:%g /tmp/share/new)" = "$(id -u):$(id -g)" ] || { ls -ln /tmp/share; exit 1; }
[ "$(cat /tmp/share/new)" = from-the-guest ]
