#!/bin/sh
# Build the first guest, an initramfs with busybox and a shell, without root; print its path.
# Reproducible byte for byte, and cached.
#
#   scripts/build_first_guest.sh [--output FILE]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
. "$root/kernel/cache.sh"
python=$here/../${VENV:-.venv}/bin/python
[ -x "$python" ] || python=python3

output=
case ${1:-} in
--output) output=${2:?--output needs a file} ;;
?*) fail "usage: build_first_guest.sh [--output FILE]" ;;
esac

recipe=$(cat "$0" "$here/first_guest_init.sh" "$here/boot_timer.py" \
    "$here/../voidbox/boot/newc.py" | sha256sum | cut -c1-12)
built=$cache/images/first-guest-$recipe/initramfs.cpio
if [ ! -e "$built" ]; then
    mkdir -p "$cache/images"
    work=$(mktemp -d "$cache/images/tmp.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    fetch_deb busybox-static "$work/deb"
    mkdir -p "$work/image"
    for folder in bin dev proc sys; do mkdir -p "$work/root/$folder"; done
    cp "$work/deb/bin/busybox" "$work/root/bin/busybox"
    cp "$here/first_guest_init.sh" "$work/root/init"
    chmod 755 "$work/root/init"
    "$python" "$here/boot_timer.py" "$work/root/bin/boot-timer"
    PYTHONPATH=$here/.. "$python" -m voidbox.boot.newc "$work/root" "$work/image/initramfs.cpio" \
        --node /dev/console:5:1 --node /dev/null:1:3
    publish "$work/image" "$(dirname "$built")"
fi
if [ -n "$output" ]; then
    cp "$built" "$output"
    built=$output
fi
echo "$built"
