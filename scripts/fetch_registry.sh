#!/bin/sh
# Fetch Debian's docker-registry without root and without starting it, for the tests of
# `voidbox image pull`; print the path of the program. Quick when it is there.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/kernel/cache.sh"

current=$cache/registry/current
if [ ! -x "$current/docker-registry" ]; then
    mkdir -p "$cache/registry"
    work=$(mktemp -d "$cache/registry/tmp.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    version=$(newest docker-registry)
    fetch_deb docker-registry "$work/root"
    mkdir "$work/registry"
    mv "$work/root/usr/bin/docker-registry" "$work/registry/"
    publish "$work/registry" "$cache/registry/$version"
    ln -sfn "$version" "$current"
fi
echo "$current/docker-registry"
