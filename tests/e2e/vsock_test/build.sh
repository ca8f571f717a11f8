#!/bin/sh
# Build the Linux kernel's vsock test programs from Debian's linux-source, and print the folder with
# vsock_test and vsock_diag_test (static: they run in a guest) and vsock_test_unix (for the host, with
# the Unix socket backend). Ten seconds once; cached.
#
# Tests, Makefile and options are the kernel's, unchanged. The control channel alone is ours, for the
# guest has no network; see control.c.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
. "$root/kernel/cache.sh"

pinned=$(cat "$root/kernel/VERSION")
recipe=$(cat "$0" "$here"/*.c | sha256sum | cut -c1-12)
target=$cache/vsock-test-$pinned-$recipe
if [ ! -d "$target" ]; then
    missing=
    for tool in gcc:gcc make:make xz:xz-utils; do
        command -v "${tool%:*}" >/dev/null || missing="$missing ${tool#*:}"
    done
    [ -z "$missing" ] || fail "to build the vsock tests: apt-get install -y$missing libc6-dev"
    work=$(mktemp -d "$cache/tmp.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    source=$cache/sources/linux-source-$pinned.tar.xz
    if [ ! -e "$source" ]; then
        # Not the pinned version: Debian's archive keeps only the newest, and any 6.1 has the tests.
        fetch_deb linux-source-6.1 "$work/deb"
        source=$(echo "$work"/deb/usr/src/linux-source-*.tar.xz)
    fi
    mkdir "$work/source" "$work/built"
    tar -xf "$source" -C "$work/source" --strip-components=1 --wildcards \
        '*/tools/testing/vsock/*' '*/tools/include/*'
    cd "$work/source/tools/testing/vsock"
    cp "$here"/*.c .
    if ! {
        make LDFLAGS=-static
        cp vsock_test vsock_diag_test "$work/built/"
        gcc -Wl,--wrap=socket,--wrap=connect,--wrap=bind,--wrap=accept \
            -o "$work/built/vsock_test_unix" vsock_test.o timeout.o control.o util.o unix_socket.c
    } >"$work/log" 2>&1; then
        fail "the vsock tests do not compile: $(grep -m 1 -i error "$work/log")"
    fi
    publish "$work/built" "$target"
fi
echo "$target"
