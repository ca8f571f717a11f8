#!/.voidbox/usr/bin/busybox sh
# In a guest whose root holds /target, a Debian that is unpacked but not installed, and /repo, its
# packages: install them, then write the result as a tar archive to the disk "voidbox-output".
set -eu
busybox=/.voidbox/usr/bin/busybox
$busybox mount -t proc proc /target/proc
$busybox mount -t sysfs sysfs /target/sys
$busybox mount -o rbind /dev /target/dev
$busybox mount -o bind /repo /target/.repo
$busybox mkdir /target/.bare
$busybox mount -o bind /target /target/.bare
output=
for disk in /sys/block/vd*; do
    serial=
    read -r serial <"$disk/serial" || :
    [ "$serial" != voidbox-output ] || output=/dev/${disk##*/}
done
$busybox chroot /target /bin/sh /.repo/debian_inner.sh "$output"
