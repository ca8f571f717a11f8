#!/bin/sh
# Fetch Debian's stock kernel without root, and print the path of its vmlinuz.
#
#   kernel/fetch_debian.sh [cloud|generic]
#
# The cache then holds vmlinuz, config and lib/modules of that version; the next call prints the
# path at once. Without a network the newest cached one is printed.
set -eu
. "$(dirname "$0")/cache.sh"

flavour=${1:-cloud}
case $flavour in
cloud) meta=linux-image-cloud-amd64 ;;
generic) meta=linux-image-amd64 ;;
*) fail "no kernel called '$flavour': say cloud or generic" ;;
esac
mkdir -p "$cache/kernels"

# Asking apt takes most of a second: not again while its lists are unchanged.
current=$cache/kernels/current-$flavour
if [ -e "$current/vmlinuz" ] && [ ! /var/lib/apt/lists -nt "$current/.asked" ]; then
    readlink -f "$current/vmlinuz"
    exit
fi

# The metapackage depends on the package of the current version.
package=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
if [ -z "$package" ]; then
    newest=$(find "$cache/kernels" -maxdepth 1 -name "debian-$flavour-*" | sort -V | tail -1)
    [ -n "$newest" ] || fail "apt knows no $meta: run 'apt-get update' as root first"
    echo "fetch_debian.sh: apt knows no $meta; using the cached $(basename "$newest")" >&2
    echo "$newest/vmlinuz"
    exit
fi

target=$cache/kernels/debian-$flavour-${package#linux-image-}
if [ ! -d "$target" ]; then
    work=$(mktemp -d "$cache/kernels/tmp.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    fetch_deb "$package" "$work/root"
    mkdir "$work/kernel"
    mv "$work"/root/boot/vmlinuz-* "$work/kernel/vmlinuz"
    mv "$work"/root/boot/config-* "$work/kernel/config"
    mv "$work/root/lib" "$work/kernel/lib"
    publish "$work/kernel" "$target"
fi
touch "$target/.asked"
ln -sfn "$(basename "$target")" "$current"
echo "$target/vmlinuz"
