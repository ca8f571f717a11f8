#!/bin/sh
# Build the guest image, with busybox, Python, the agent and the kernel's modules, without root; print
# its path. Reproducible byte for byte, and cached: `voidbox run` boots the one that was built last
# for its kernel. Side by side there are
#
#   runtime.erofs   the image, as a disk; also what brings the agent to other images
#   boot.cpio       the initramfs that mounts it, see guest_boot_init.sh
#   initramfs.cpio  the image once more, as an initramfs: all of it is the guest's memory
#
#   scripts/build_guest_image.sh [--kernel FILE] [--with PACKAGE]… [--add HOSTPATH:GUESTPATH]…
#                                [--output FILE]
#
#   --kernel FILE  a kernel with `config` and lib/modules beside it, as kernel/fetch_debian.sh leaves
#                  them: its modules are packed. Without it: for kernels that need none.
#   --with NAME    a Debian package more, with all that it depends on
#   --add H:G      a file or folder of this machine, at G in the guest
set -eu
export LC_ALL=C # the order of sorted names, and what apt says
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../kernel/cache.sh"
python=$here/../${VENV:-.venv}/bin/python
[ -x "$python" ] || python=python3
agent=$here/../guest_agent

# What the image's Python offers needs these: ctypes, bz2, lzma, sqlite3, ssl, uuid, readline, curses.
base="busybox-static python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libexpat1
  zlib1g libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libssl3 libuuid1 libreadline8 libtinfo6
  libncursesw6 ncurses-base ca-certificates"
# Only their mke2fs, for the guest's disk, and none of it in the initramfs.
disk_tools="e2fsprogs libext2fs2 libblkid1 libcom-err2"

usage="usage: build_guest_image.sh [--kernel FILE] [--with PACKAGE]… [--add HOSTPATH:GUESTPATH]… [--output FILE]"
newline='
'
kernel= output= extra= added= work=

# temporary_folder: set $work to a folder of this run's own, which is gone when it ends.
temporary_folder() {
    [ -z "$work" ] || return 0
    mkdir -p "$cache/images"
    work=$(mktemp -d "$cache/images/tmp.XXXXXX")
    trap 'rm -rf "$work" ${part:+"$part"}' EXIT
    trap 'exit 1' HUP INT TERM # a shell that a signal ends does not see its EXIT trap
}

check_added() { # check_added HOSTPATH:GUESTPATH
    case ${1#*:} in
    "$1" | [!/]* | *"$newline"*) fail "--add $1: give HOSTPATH:GUESTPATH, the guest's path absolute" ;;
    esac
    case ${1#*:}/ in
    *//* | */./* | */../*) fail "--add $1: the guest's path must name a file, without . and .." ;;
    esac
    [ -e "${1%%:*}" ] || fail "--add $1: there is no ${1%%:*}"
    odd=$(find -H "${1%%:*}" ! -type f ! -type d ! -type l -print -quit)
    [ -z "$odd" ] || fail "--add $1: $odd is no file, folder or link"
}

while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || fail "$usage"
    case $1 in
    --kernel) kernel=$2 ;;
    --with)
        case $2 in
        '' | [!a-z0-9]* | *- | *[!A-Za-z0-9+.:=~-]*) fail "--with $2: not a package's name" ;;
        esac
        extra="$extra $2"
        ;;
    --add)
        check_added "$2"
        added="$added$2$newline"
        ;;
    --output) output=$2 ;;
    *) fail "$usage" ;;
    esac
    shift 2
done
for tool in apt-get apt-cache dpkg-deb tar; do
    command -v $tool >/dev/null || fail "$tool is missing: this works on Debian and its kin"
done
[ -e "$agent/__main__.py" ] || fail "the agent is missing: $agent"
[ ! -d "$output" ] || fail "--output $output: this is a folder, name a file"
[ -d "$(dirname "$output")" ] || fail "--output $output: there is no folder $(dirname "$output")"

# The kernel's modules and what tells which of them are wanted.
release=builtin
if [ -n "$kernel" ]; then
    [ -f "$kernel" ] || fail "no kernel $kernel"
    beside=$(dirname "$(readlink -f "$kernel")")
    [ -f "$beside/config" ] || fail "no config beside $kernel: which modules it needs is not known"
    for folder in "$beside"/lib/modules/*; do
        [ ! -d "$folder" ] || release=$(basename "$folder")
    done
    if [ $release = builtin ] && grep -q '^CONFIG_VIRTIO_.*=m' "$beside/config"; then
        fail "no lib/modules beside $kernel, but its config makes virtio modules"
    fi
    [ $release != builtin ] || kernel=
fi

hash_added() {
    printf '%s' "$added" | while IFS=: read -r host guest; do
        echo "$guest"
        (cd "$(dirname "$host")" && find -H "$(basename "$host")" -printf '%P %y %m %l\n' | sort &&
            find -H "$(basename "$host")" -type f -print0 | sort -z | xargs -0r sha256sum)
    done
}

# Which version of which package. Asking apt takes a second: not again while its lists are unchanged.
mkdir -p "$cache/debs" "$cache/images"
words=$(printf '%s\n' $base $disk_tools -- $extra | sha256sum | cut -c1-12)
resolved=$cache/debs/resolved-$words

# resolve: write the names of the packages' files to $resolved; if apt cannot, say why in $work/why.
resolve() {
    packages="$base $disk_tools"
    if [ -n "$extra" ]; then
        : >"$work/status" # as on an empty system, so that nothing counts as installed
        # shellcheck disable=SC2086  # a list of words
        apt-get install --simulate -qq --no-install-recommends -o Dir::State::status="$work/status" \
            -o Debug::NoLocking=1 $extra >"$work/plan" 2>"$work/why" || return 1
        packages="$packages $(sed -n 's/^Inst \([^ ]*\) .*/\1/p' "$work/plan")"
    fi
    mkdir -p "$work/empty" # of what the current folder has already, apt says nothing
    # shellcheck disable=SC2086
    (cd "$work/empty" && apt-get download --print-uris -qq $packages) >"$work/uris" 2>"$work/why" || return 1
    awk '{print $2}' "$work/uris" | sort -u >"$work/resolved"
    mv "$work/resolved" "$resolved"
}
if [ ! -s "$resolved" ] || [ /var/lib/apt/lists -nt "$resolved" ]; then
    temporary_folder
    if ! resolve; then
        why=$(grep -m 1 '^E:' "$work/why" || echo "no reason given")
        [ -s "$resolved" ] ||
            fail "apt cannot provide every package ($why): is the name right? run 'apt-get update' as root"
        echo "build_guest_image.sh: apt cannot say what is new ($why); using the cached packages" >&2
    fi
fi

key=$({
    cat "$0" "$here/guest_modules.py" "$here/guest_boot_init.sh" "$resolved"
    cat "$here/../voidbox/boot/newc.py" "$here"/../voidbox/images/*.py
    find -L "$agent" -name '*.py' -printf '%P\n' | sort | while read -r name; do
        echo "$name"
        cat "$agent/$name"
    done
    if [ -n "$kernel" ]; then
        cat "$beside/config"
        # Their contents are too much to read each time.
        find "$beside/lib/modules/$release" -type f -printf '%P %s %T@\n' | sort
    fi
    echo "$release"
    hash_added
} | sha256sum | cut -c1-12)
target=$cache/images/guest-$release-$key

finish() {
    if [ -n "$output" ]; then
        temporary_folder
        part=$(mktemp "$output.XXXXXX" 2>/dev/null) || fail "--output $output: cannot write there"
        cp "$target/initramfs.cpio" "$part" 2>/dev/null && chmod 644 "$part" && mv "$part" "$output" ||
            fail "--output $output: cannot write it; is the disk full?"
    fi
    # What --with and --add make of it is not for everybody.
    [ -n "$extra$added" ] || ln -sfn "$(basename "$target")" "$cache/images/current-$release"
    echo "${output:-$target/initramfs.cpio}"
    exit
}
[ ! -d "$target" ] || finish

echo "building the guest image: some seconds, once; a minute where packages must be downloaded" >&2
temporary_folder
root=$work/root
while read -r deb; do
    [ -s "$cache/debs/$deb" ] || echo "$deb"
done <"$resolved" >"$work/missing"
if [ -s "$work/missing" ]; then
    # "name_version_arch.deb", the version's colon as %3a, to name=version
    wanted=$(sed 's/_\([^_]*\)_[^_]*\.deb$/=\1/; s/%3a/:/' "$work/missing")
    mkdir "$work/debs"
    # shellcheck disable=SC2086
    (cd "$work/debs" && apt-get download -qq $wanted >"$work/log" 2>&1) ||
        fail "cannot download packages ($(grep -m 1 '^E:' "$work/log")): is there a network, and does 'apt-get update' work?"
    mv "$work"/debs/*.deb "$cache/debs/"
fi

for folder in usr/bin usr/lib usr/lib64 usr/sbin dev proc sys run root home/sandbox workspace etc/voidbox \
    tmp usr/lib/voidbox var/tmp var/log; do
    mkdir -p "$root/$folder"
done
for folder in bin lib lib64 sbin; do ln -s usr/$folder "$root/$folder"; done
unpack() { # unpack DEB FOLDER
    # -p: an ordinary user's tar would drop the set-user-ID bits, which root's keeps.
    # Errors into a variable: a file would have no room where the disk is full.
    why=$({ dpkg-deb --fsys-tarfile "$cache/debs/$1" |
        tar -xp -C "$2" --no-same-owner --keep-directory-symlink; } 2>&1) ||
        fail "cannot unpack $1 ($(echo "$why" | grep -m 1 ^tar:)): is the disk full? if not, remove $cache/debs/$1"
}
mkdir "$work/tools"
while read -r deb; do
    case " $disk_tools " in
    *" ${deb%%_*} "*)
        unpack "$deb" "$work/tools"
        [ -n "$extra" ] || continue # it may be what --with asks for, or what that depends on
        ;;
    esac
    unpack "$deb" "$root"
done <"$resolved"
cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$work/certificates"
(
    cd "$root/usr/share"
    rm -rf doc man info locale lintian bug binfmts initramfs-tools ca-certificates
    rm -rf ../lib/x86_64-linux-gnu/gconv # iconv's tables: Python brings its own
    cd ../lib/python3.11
    rm -rf test idlelib lib2to3 pydoc_data ensurepip distutils config-3.11-* tkinter turtledemo \
        turtle.py
)
find "$root" -name __pycache__ -prune -exec rm -rf {} +
mkdir -p "$root/etc/ssl/certs"
mv "$work/certificates" "$root/etc/ssl/certs/ca-certificates.crt"

# Where they belong: the kernel calls /sbin/modprobe, scripts /sbin/ip.
for applet in $("$root/usr/bin/busybox" --list-full); do
    case $applet in
    *sbin/*) folder=usr/sbin link=../bin/busybox ;;
    *bin/*) folder=usr/bin link=busybox ;;
    *) continue ;;
    esac
    [ -e "$root/usr/bin/${applet##*/}" ] || [ -e "$root/usr/sbin/${applet##*/}" ] ||
        ln -s $link "$root/$folder/${applet##*/}"
done
for name in python python3; do ln -sf python3.11 "$root/usr/bin/$name"; done
cat >"$root/etc/passwd" <<'X'
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
sandbox:x:1000:1000:sandbox:/home/sandbox:/bin/sh
X
cat >"$root/etc/group" <<'X'
root:x:0:
tty:x:5:
nogroup:x:65534:
sandbox:x:1000:
X
cat >"$root/etc/profile" <<'X'
PS1='\u@\h:\w\$ '
export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
X
echo voidbox >"$root/etc/hostname"
echo '127.0.0.1 localhost voidbox' >"$root/etc/hosts"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
printf 'NAME="voidbox guest"\nID=voidbox\nID_LIKE=debian\n' >"$root/etc/os-release"

mkdir "$root/usr/lib/voidbox/guest_agent"
cp -L "$agent"/*.py "$root/usr/lib/voidbox/guest_agent/"
# -I: neither environment nor user's folder; -S: no site, which costs a third of the start;
# -B: the compiled files are there already.
cat >"$root/init" <<'X'
#!/usr/bin/python3.11 -ISB
import sys

sys.path.insert(0, __file__.removesuffix("init") + "usr/lib/voidbox")
from guest_agent.__main__ import main

main(sys.argv[1:])
X
cat >"$root/usr/bin/voidbox-relay" <<'X'
#!/usr/bin/python3.11 -ISB
import sys

sys.path.insert(0, __file__.removesuffix("bin/voidbox-relay") + "lib/voidbox")
from guest_agent.relay import main

sys.exit(main(sys.argv[1:]))
X
# For other images, in which this one is /.voidbox: nothing of theirs is used.
mkdir "$root/usr/lib/voidbox/bin"
cat >"$root/usr/lib/voidbox/bin/voidbox-relay" <<'X'
#!/.voidbox/usr/bin/busybox sh
lib=/.voidbox/usr/lib/x86_64-linux-gnu
exec $lib/ld-linux-x86-64.so.2 --inhibit-cache --library-path $lib \
    /.voidbox/usr/bin/python3.11 -ISB /.voidbox/usr/bin/voidbox-relay "$@"
X
cat >"$root/usr/lib/voidbox/bin/modprobe" <<'X'
#!/.voidbox/usr/bin/busybox sh
exec /.voidbox/usr/bin/busybox chroot /.voidbox /usr/sbin/modprobe "$@"
X
chmod 755 "$root/init" "$root/usr/bin/voidbox-relay" "$root"/usr/lib/voidbox/bin/*
if [ -n "$kernel" ]; then
    "$python" "$here/guest_modules.py" "$beside/config" "$beside/lib/modules/$release" "$root" || exit 1
else
    : >"$root/usr/lib/voidbox/modules"
fi
printf '%s' "$added" | while IFS=: read -r host guest; do
    [ ! -e "$root$guest" ] && [ ! -L "$root$guest" ] ||
        fail "--add $host:$guest: the image has a $guest already"
    # An absolute link in the image points out of it while it is built.
    case $(readlink -m "$root$(dirname "$guest")")/ in
    "$(readlink -m "$root")"/*) ;;
    *) fail "--add $host:$guest: a link of the image is in the way" ;;
    esac
    mkdir -p "$root$(dirname "$guest")" 2>/dev/null ||
        fail "--add $host:$guest: $(dirname "$guest") is no folder in the image"
    why=$(cp -aH "$host" "$root$guest" 2>&1) ||
        fail "--add $host:$guest: $(echo "$why" | head -1)"
done

# The image's own Python compiles for itself, which shows too that it starts.
image_python() {
    env -i PYTHONHOME="$root/usr" "$root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" \
        --library-path "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/python3.11" "$@"
}
# -B: what it imports for that leaves no files of another kind.
why=$(image_python -B -m compileall -q -s "$root" -p / --invalidation-mode unchecked-hash \
    "$root/usr/lib/python3.11" "$root/usr/lib/voidbox" 2>&1) ||
    fail "the image's Python cannot compile its library: $(echo "$why" | tail -1)"
why=$(image_python -IBS -c "
import sys; sys.path.insert(0, '$root/usr/lib/voidbox')
import guest_agent.server, guest_agent.boot, guest_agent.relay, hashlib
import bz2, ctypes, curses, lzma, readline, sqlite3, ssl, uuid, zlib" 2>&1) ||
    fail "the image is not whole: $(echo "$why" | tail -1)"

# The initramfs that mounts the image.
boot=$work/boot
for folder in bin dev etc/voidbox image proc root runtime sys upper usr/lib/voidbox; do
    mkdir -p "$boot/$folder"
done
cp "$root/usr/bin/busybox" "$boot/bin/"
for applet in sh poweroff switch_root; do ln -s busybox "$boot/bin/$applet"; done
cp "$here/guest_boot_init.sh" "$boot/init"
chmod 755 "$boot/init"
if [ -n "$kernel" ]; then
    "$python" "$here/guest_modules.py" "$beside/config" "$beside/lib/modules/$release" "$boot" boot || exit 1
else
    : >"$boot/usr/lib/voidbox/modules"
fi

mkdir "$work/image"
why=$(PYTHONPATH=$here/.. "$python" -m voidbox.boot.newc "$boot" "$work/image/boot.cpio" \
    --node /dev/console:5:1 --node /dev/null:1:3 2>&1) ||
    fail "cannot pack the image: $why"
# urandom: Python reads it at its start where the kernel has no entropy yet, before /dev is mounted.
why=$(PYTHONPATH=$here/.. "$python" -m voidbox.boot.newc "$root" "$work/image/initramfs.cpio" \
    --mode /root:0700 --mode /tmp:1777 --mode /var/tmp:1777 \
    --node /dev/console:5:1 --node /dev/null:1:3 --node /dev/urandom:1:9 2>&1) ||
    fail "cannot pack the image: $why"
e2fs=$root/usr/lib/voidbox/e2fs
mkdir "$e2fs"
cp "$work/tools/sbin/mke2fs" "$e2fs/"
for library in libext2fs libe2p libblkid libcom_err; do
    library=$(find "$work/tools" -name "$library.so.[0-9]")
    [ -e "$library" ] || fail "the packages of mke2fs are not as expected"
    cp -L "$library" "$e2fs/"
done
why=$(PYTHONPATH=$here/.. "$python" -m voidbox.images.pack "$root" "$work/image/runtime.erofs" \
    --owner 0:0 --mtime 0 --shared-modes \
    --mode /root:0700 --mode /tmp:1777 --mode /var/tmp:1777 2>&1) ||
    fail "cannot pack the image: $why"
publish "$work/image" "$target"
finish
