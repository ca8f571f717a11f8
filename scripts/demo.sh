#!/bin/sh
# Boot Debian's cloud kernel in a voidbox VM, say something in it, and power it off.
set -eu
cd "$(dirname "$0")/.."
kernel=$(kernel/fetch_debian.sh cloud)
initramfs=$(scripts/build_first_guest.sh)
echo "kernel:    $kernel"
echo "initramfs: $initramfs"
printf '%s\n' 'echo "Hello from Linux $(uname -r), on $(nproc) CPUs."' 'poweroff -f' |
    scripts/with-kvm -- "${VENV:-.venv}/bin/python" -m voidbox run \
        --kernel "$kernel" --initramfs "$initramfs" --cpus 2 --timeout 120
echo "The VM powered off. For a shell of your own, leave out the pipe:"
echo "  scripts/with-kvm -- .venv/bin/python -m voidbox run --kernel $kernel --initramfs $initramfs"
