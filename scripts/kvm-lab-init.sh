#!/bin/busybox sh
# The lab's init: the host's root under a throw-away overlay, then the command, its streams on
# virtio-serial ports: 1 stdin, 2 stdout, 3 stderr, 4 exit status, 5 window size. /lab/ holds what
# scripts/kvm-lab says.
b=/bin/busybox
$b mkdir -p /proc /sys /host /ov /new /keep
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/lib/$module"; done </lab/modules
$b date -s "@$($b cat /lab/time)" >/dev/null

$b mount -t virtiofs host /host
$b mount -t tmpfs ov /ov
$b mkdir -p /ov/upper /ov/work
$b mount -t overlay -o lowerdir=/host,upperdir=/ov/upper,workdir=/ov/work root /new

# What must stay visible although it lies below a folder that gets a fresh tmpfs.
count=0
while read -r path; do
    case $path in /tmp/* | /run/* | /dev/shm/*)
        $b mkdir -p "/keep/$count"
        $b mount --bind "/new$path" "/keep/$count"
        ;;
    esac
    count=$((count + 1))
done </lab/keep
for folder in proc sys dev; do $b mount --move /$folder /new/$folder; done
$b mkdir -p /new/dev/pts /new/dev/shm
$b mount -t devpts pts /new/dev/pts
for folder in dev/shm tmp run; do $b mount -t tmpfs tmp /new/$folder; done
$b chmod 1777 /new/tmp /new/dev/shm
count=0
while read -r path; do
    if [ -d "/keep/$count" ]; then
        $b mkdir -p "/new$path"
        $b mount --move "/keep/$count" "/new$path"
    fi
    count=$((count + 1))
done </lab/keep
count=0
while read -r path; do
    $b mkdir -p "/new$path"
    $b mount -t virtiofs "rw$count" "/new$path"
    count=$((count + 1))
done </lab/rw

cd /new/dev
$b ln -sf /proc/self/fd fd
$b ln -sf fd/0 stdin
$b ln -sf fd/1 stdout
$b ln -sf fd/2 stderr
$b chmod 666 kvm vhost-vsock vhost-net net/tun 2>/dev/null
$b mount -t debugfs debug /new/sys/kernel/debug
$b ip link set lo up
echo 0 2147483647 >/new/proc/sys/net/ipv4/ping_group_range # as systemd does
$b mkdir -p /new/run/lab
$b cp /lab/* /new/run/lab/
$b mv /bin/busybox /new/run/lab/busybox
b=./run/lab/busybox
# The command's root is to be the root of the mount namespace, not one inside it: the kernel makes
# no user namespaces for who is in a chroot. From here on the new root is the current folder.
cd /new
$b mount --move . /

# A virtual machine that is there all the time and never runs. With the first one that is made, and
# the last one that is gone, the kernel patches its scheduler's code (preempt_notifier_key, and
# apic_sw_disabled with the first vCPU), and QEMU 7.2 now and then goes on executing the breakpoint
# of the patch: both CPUs then take exceptions for ever.
$b chroot . "$($b cat /lab/python)" -ISc '
import fcntl, signal
KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_CREATE_IRQCHIP = 0xAE01, 0xAE41, 0xAE60
with open("/dev/kvm") as kvm:
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    fcntl.ioctl(vm, KVM_CREATE_IRQCHIP)
    fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    open("/run/lab/machine", "w").close()
    signal.pause()
' &
until [ -e ./run/lab/machine ] || ! kill -0 $! 2>/dev/null; do $b usleep 10000; done

# The ports come up one by one, some time after their driver was loaded.
until set -- ./dev/vport*p5 && [ -e "$1" ]; do $b usleep 10000; done
port=${1%5}

command='. /run/lab/env; cd "$(cat /run/lab/cwd)"; eval "exec $(cat /run/lab/command)"'
read -r rows columns <./run/lab/tty
if [ -n "$rows" ]; then
    # script(1) makes the terminal; port 5 tells when the window's size changes.
    while read -r r c; do
        $b stty -F ./dev/pts/0 rows "$r" cols "$c"
    done <"${port}5" >/dev/null 2>&1 &
    command="stty rows $rows cols $columns; $command"
    $b chroot . /usr/bin/setsid /usr/bin/script -qec "/bin/bash -c '$(
        echo "$command" | $b sed "s/'/'\\\\''/g"
    )'" /dev/null <"${port}1" >"${port}2" 2>"${port}3"
else
    # In a shell of its own: what this one says of a killed child belongs on the console.
    (exec $b chroot . /bin/bash -c "$command" <"${port}1" >"${port}2" 2>"${port}3")
fi
status=$?
echo $status >"${port}4"
$b poweroff -f
