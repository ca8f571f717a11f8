#!/bin/busybox sh
# PID 1 of a guest whose root is on disks, until the agent takes over: find the disks by their serial
# numbers, lay a writable overlay over the image, and leave this initramfs, whose memory is then free.
#
#   voidbox-runtime   read-only erofs: the agent and its Python; also the root, if there is no image
#   voidbox-image     read-only erofs: the root of an image
#   voidbox-upper     what the guest writes: blank at first; without this disk, memory takes it
#
# Nothing here may wait for ever: what fails is told in one line, and ends the machine.

agent=.voidbox # where the runtime is in the root; guest_agent/root.py says why
lib=usr/lib/x86_64-linux-gnu

fail() { # fail MESSAGE
    # By way of the kernel, as an error: the line is on the console before the power goes.
    echo "<2>voidbox: cannot start from the disks: $1" >&3
    poweroff -f
    exit 1 # a kernel that cannot power off panics now
}

attempt() { # attempt WHAT COMMAND [ARGUMENT …]
    what=$1
    shift
    why=$("$@" 2>&1) || fail "cannot $what: ${why##*: }"
}

/bin/busybox mount -t proc -o nosuid,nodev,noexec proc /proc # by way of it the shell finds all else
mount -t devtmpfs -o nosuid,mode=0755 devtmpfs /dev
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
exec 3>/dev/kmsg
while read -r module; do
    attempt "load ${module##*/}" insmod "$module"
done </usr/lib/voidbox/modules

runtime= image= upper=
for disk in /sys/block/vd*; do
    [ -e "$disk/serial" ] || continue
    serial=
    read -r serial <"$disk/serial" # no newline ends it
    case $serial in
    voidbox-runtime) runtime=/dev/${disk##*/} ;;
    voidbox-image) image=/dev/${disk##*/} ;;
    voidbox-upper) upper=/dev/${disk##*/} ;;
    *) continue ;;
    esac
    echo 1024 >"$disk/queue/read_ahead_kb" # a request costs more than what it brings
done
[ -n "$runtime" ] || fail "there is no disk voidbox-runtime: does this kernel have virtio_blk?"

attempt "mount the runtime" mount -t erofs -o ro,nodev "$runtime" /runtime
lower=/runtime
if [ -n "$image" ]; then
    attempt "mount the image" mount -t erofs -o ro "$image" /image
    lower=/image
fi
if [ -z "$upper" ]; then
    attempt "mount a tmpfs" mount -t tmpfs -o mode=0755 tmpfs /upper
else
    if cmp -s -n 4096 "$upper" /dev/zero; then
        e2fs=/runtime/usr/lib/voidbox/e2fs
        attempt "make a file system on the disk" "/runtime/$lib/ld-linux-x86-64.so.2" \
            --inhibit-cache --library-path "$e2fs:/runtime/$lib" "$e2fs/mke2fs" -q -F -t ext4 -m 0 \
            -e remount-ro -O ^resize_inode -E nodiscard,assume_storage_prezeroed=1 "$upper"
    fi
    attempt "mount the disk" mount -t ext4 -o discard,noatime "$upper" /upper
fi
attempt "write on the disk" mkdir -p /upper/root
if [ -n "$image" ] && [ ! -d /upper/work ]; then
    # The overlay takes them from the upper folder. An image made of a folder that was its owner's
    # alone is to be of use to other users too.
    attempt "give / its owner" chown "$(stat -c %u:%g /image)" /upper/root
    attempt "give / its mode" chmod "$(stat -c %a /image)" /upper/root
    attempt "give / its mode" chmod a+rx /upper/root
fi
attempt "write on the disk" mkdir -p /upper/work
# redirect_dir: else no folder of the image could be renamed.
attempt "lay the overlay" mount -t overlay -o \
    "lowerdir=$lower,upperdir=/upper/root,workdir=/upper/work,redirect_dir=on" overlay /root

for folder in dev proc sys $agent; do
    # No link of the image's: it would lead out of its root.
    if [ ! -d "/root/$folder" ] || [ -L "/root/$folder" ]; then
        attempt "clear /$folder in the image" rm -rf "/root/$folder"
        attempt "make /$folder in the image" mkdir "/root/$folder"
    fi
done
# What only the host and the agent know goes on in memory; the agent reads it and takes it away.
attempt "mount a tmpfs" mount -t tmpfs -o mode=0700,size=1M tmpfs /runtime/etc/voidbox
attempt "hand over the host's files" cp -a /etc/voidbox/. /runtime/etc/voidbox/
# And a folder of the disk that no overlay lies over, see guest_agent/containers.py.
attempt "write on the disk" mkdir -p /upper/disk /runtime/etc/voidbox/disk
attempt "hand over the disk" mount -o bind /upper/disk /runtime/etc/voidbox/disk
attempt "move the runtime" mount -o move /runtime "/root/$agent"
for folder in dev sys proc; do # from here on, busybox is found by its links
    attempt "move /$folder" mount -o move "/$folder" "/root/$folder"
done
exec 3>&-
exec switch_root -c /dev/console /root "/$agent/$lib/ld-linux-x86-64.so.2" --inhibit-cache \
    --library-path "/$agent/$lib" "/$agent/usr/bin/python3" -ISB "/$agent/init"
