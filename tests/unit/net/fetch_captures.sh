#!/bin/sh
# Fetch the packet captures that tcpdump is tested with, many of them found by fuzzing, and print
# the path of the archive that holds them. Needs neither root nor deb-src lines in apt's sources.
set -eu
. "$(dirname "$0")/../../../kernel/cache.sh"

target=$cache/captures
archive=$(find "$target" -name 'tcpdump_*.orig.tar.*' 2>/dev/null | grep -v '\.asc$' | head -1)
if [ -z "$archive" ]; then
    command -v apt-get >/dev/null || fail "apt-get is missing: this fetches a Debian source package"
    work=$(mktemp -d "$cache/tmp.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
    # Where this machine has its packages from, it has their sources from.
    mkdir "$work/sources"
    for list in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
        [ ! -e "$list" ] || sed 's/^Types: deb$/Types: deb-src/; s/^deb /deb-src /' "$list" \
            >"$work/sources/$(basename "$list")"
    done
    set -- -qq -o Dir::Etc::SourceList="$work/sources/sources.list" \
        -o Dir::Etc::SourceParts="$work/sources" \
        -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" \
        -o APT::Sandbox::User= -o Acquire::Retries=0 -o Acquire::http::Timeout=20
    if ! (cd "$work/source" && apt-get "$@" update && apt-get "$@" source --download-only tcpdump) \
        >"$work/log" 2>&1; then
        fail "cannot fetch tcpdump's source ($(head -1 "$work/log")): is there a network?"
    fi
    publish "$work/source" "$target"
    archive=$(find "$target" -name 'tcpdump_*.orig.tar.*' | grep -v '\.asc$' | head -1)
fi
[ -n "$archive" ] || fail "no archive in $target: remove that folder and try again"
echo "$archive"
