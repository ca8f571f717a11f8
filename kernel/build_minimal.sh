#!/bin/sh
# Build the minimal kernel from Debian's linux-source without root, and print its folder, which
# holds bzImage, vmlinux and config. Some four minutes on two cores; the next call is instant.
#
#   kernel/build_minimal.sh
#
# kernel/VERSION pins the version of the linux-source package. Debian's archive keeps only the newest:
# if the pinned one is gone, the one on offer is built, and stderr says so.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
. "$here/cache.sh"

source_package=linux-source-6.1
pinned=$(cat "$here/VERSION")
recipe=$(cat "$here/minimal.config" "$0" | sha256sum | cut -c1-12)
finish() { # say where the kernel is; it is the default of `voidbox run` from now on
    ln -sfn "$(basename "$target")" "$cache/kernels/current-minimal"
    echo "$target"
}
target=$cache/kernels/minimal-$pinned-$recipe
if [ -d "$target" ]; then
    finish
    exit
fi

missing=
for tool in gcc:gcc make:make flex:flex bison:bison bc:bc xz:xz-utils lz4:lz4; do
    command -v "${tool%:*}" >/dev/null || missing="$missing ${tool#*:}"
done
[ -e /usr/include/libelf.h ] || missing="$missing libelf-dev"
[ -z "$missing" ] || fail "to build a kernel: apt-get install -y$missing"

mkdir -p "$cache/kernels"
work=$(mktemp -d "$cache/kernels/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
offered=$(newest $source_package)
if [ "$offered" != "$pinned" ]; then
    echo "build_minimal.sh: Debian offers $offered, not the pinned $pinned; building that" >&2
    target=$cache/kernels/minimal-$offered-$recipe
    if [ -d "$target" ]; then
        finish
        exit
    fi
fi

echo "building the minimal kernel $offered: some minutes, once" >&2
fetch_deb $source_package "$work/root"
mkdir "$work/source" "$work/kernel"
tar -xf "$work"/root/usr/src/linux-source-*.tar.xz -C "$work/source" --strip-components=1
cd "$work/source"
# The same bytes from the same input, whoever builds it and when.
export KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_USER=voidbox KBUILD_BUILD_HOST=voidbox
log=$work/log
{
    make -s tinyconfig
    scripts/kconfig/merge_config.sh -m .config "$here/minimal.config"
    make -s olddefconfig
} >"$log" 2>&1 || fail "the configuration failed: $(tail -1 "$log")"

# Kconfig drops in silence what it cannot grant.
grep -E '^CONFIG_|^# CONFIG_.* is not set$' "$here/minimal.config" >"$work/wanted"
denied=$(grep -vxFf .config "$work/wanted" | tr '\n' ' ')
[ -z "$denied" ] || fail "the kernel's configuration does not grant: $denied"

nice make -s -j"$(nproc)" bzImage >"$log" 2>&1 || fail "the build failed: $(grep -m 1 -i error "$log")"
cp arch/x86/boot/bzImage .config "$work/kernel/"
mv "$work/kernel/.config" "$work/kernel/config"
strip --strip-debug -o "$work/kernel/vmlinux" vmlinux
publish "$work/kernel" "$target"
finish
