#!/bin/busybox sh
# /init of the first guest: tells the VMM that it is up, then does what the kernel command line's
# voidbox.run says: shell (the default), poweroff, reboot, panic.
b=/bin/busybox
$b mount -t devtmpfs dev /dev 2>/dev/null
$b mount -t proc proc /proc
/bin/boot-timer

run=shell
for word in $($b cat /proc/cmdline); do
    case $word in voidbox.run=*) run=${word#*=} ;; esac
done
case $run in
poweroff) $b poweroff -f ;;
reboot) $b reboot -f ;;
esac

$b mount -t sysfs sys /sys
$b mkdir -p /dev/pts /dev/shm /tmp /run
$b mount -t devpts pts /dev/pts
$b mount -t tmpfs tmp /tmp
$b mount -t tmpfs run /run
[ $run = panic ] && echo c >/proc/sysrq-trigger

$b --install -s /bin
export PATH=/bin HOME=/ TERM=${TERM:-linux} PS1='voidbox:\w# '
cpus=$(nproc)
mib=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
echo "voidbox: first guest up, Linux $(uname -r), $cpus CPUs, $mib MiB"
setsid cttyhack sh
poweroff -f
