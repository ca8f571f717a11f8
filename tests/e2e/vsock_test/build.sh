#!/bin/sh
# Build the Linux kernel's vsock test program from Debian's linux-source, and print the folder with
# vsock_test (static: it runs in a guest) and vsock_test_unix (for the Unix socket backend). Cached.
#
# The tests are the kernel's, unchanged but for their port: 1234 is the agent's. Their control channel
# is ours, for the guest has no network; see control.c.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../../kernel/cache.sh"

pinned=$(cat "$here/../../../kernel/VERSION")
recipe=$(cat "$0" "$here"/*.c | sha256sum | cut -c1-12)
target=$cache/vsock-test-$pinned-$recipe
if [ ! -d "$target" ]; then
    command -v gcc >/dev/null || fail "to build it: apt-get install -y gcc libc6-dev"
    work=$(mktemp -d "$cache/tmp.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    source=$(find "$cache/sources" -name 'linux-source-*.tar.xz' 2>/dev/null | tail -1)
    if [ -z "$source" ]; then
        fetch_deb linux-source-6.1 "$work/deb"
        source=$(echo "$work"/deb/usr/src/linux-source-*.tar.xz)
    fi
    mkdir "$work/source" "$work/built"
    tar -xf "$source" -C "$work/source" --strip-components=4 --wildcards '*/tools/testing/vsock/*'
    cd "$work/source"
    sed -i 's/\b1234\b/5234/g' vsock_test.c
    cp "$here"/*.c .
    # ARRAY_SIZE is the kernel's, not the C library's.
    set -- -O2 -w -D_GNU_SOURCE '-DARRAY_SIZE(a)=(sizeof(a)/sizeof((a)[0]))' -I.
    gcc -static "$@" -o "$work/built/vsock_test" \
        vsock_test.c util.c timeout.c control.c || fail "vsock_test does not compile"
    gcc "$@" -Wl,--wrap=socket,--wrap=connect,--wrap=bind,--wrap=accept \
        -o "$work/built/vsock_test_unix" vsock_test.c util.c timeout.c control.c unix_socket.c ||
        fail "vsock_test_unix does not compile"
    publish "$work/built" "$target"
fi
echo "$target"
