#!/bin/sh
# Fetch Debian's docker-registry without root and without starting it, for the tests of
# `voidbox image pull`; print the path of the program. Quick when it is there.
set -eu
. "$(dirname "$0")/../kernel/cache.sh"

current=$cache/registry/current
if [ -x "$current/docker-registry" ] && [ ! /var/lib/apt/lists -nt "$current/.asked" ]; then
    echo "$current/docker-registry"
    exit
fi
version=$(apt-cache policy docker-registry 2>/dev/null | sed -n 's/^ *Candidate: //p')
case $version in
'' | '(none)')
    [ -x "$current/docker-registry" ] || fail "apt knows no docker-registry: run 'apt-get update' as root first"
    echo "$current/docker-registry"
    exit
    ;;
esac
mkdir -p "$cache/registry"
target=$cache/registry/$version
if [ ! -d "$target" ]; then
    work=$(mktemp -d "$cache/registry/tmp.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    fetch_deb "docker-registry=$version" "$work/root"
    mkdir "$work/registry"
    mv "$work/root/usr/bin/docker-registry" "$work/registry/"
    publish "$work/registry" "$target"
fi
touch "$target/.asked"
ln -sfn "$(basename "$target")" "$current"
echo "$current/docker-registry"
