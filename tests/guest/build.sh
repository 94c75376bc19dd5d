#!/bin/sh
# Builds the programs that run inside a guest, static and without anything to install: build.sh DIRECTORY
set -eu
here=$(dirname "$0")
to=${1:?usage: build.sh DIRECTORY}
mkdir -p "$to"
for source in "$here"/*.c; do
	${CC:-gcc} -O2 -Wall -Wextra -Werror -static -o "$to/$(basename "$source" .c)" "$source"
done
