#!/bin/sh
# Build the guest image, an initramfs with busybox, Python, the agent and the kernel's modules,
# without root; print its path. Reproducible byte for byte, and cached: `voidbox run` boots the one
# that was built last for its kernel.
#
#   scripts/build_guest_image.sh [--kernel FILE] [--with PACKAGE]… [--add HOSTPATH:GUESTPATH]…
#                                [--output FILE]
#
#   --kernel FILE  a kernel with `config` and lib/modules beside it, as kernel/fetch_debian.sh leaves
#                  them: its modules are packed. Without it: for kernels that need none.
#   --with NAME    a Debian package more, with all that it depends on
#   --add H:G      a file or folder of this machine, at G in the guest
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../kernel/cache.sh"
python=$here/../${VENV:-.venv}/bin/python
[ -x "$python" ] || python=python3
agent=$here/../guest_agent

# What the image's Python offers needs these: ctypes, bz2, lzma, sqlite3, ssl, uuid, readline, curses.
base="busybox-static python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libexpat1
  zlib1g libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libssl3 libuuid1 libreadline8 libtinfo6
  libncursesw6 ncurses-base ca-certificates"

usage="usage: build_guest_image.sh [--kernel FILE] [--with PACKAGE]… [--add HOSTPATH:GUESTPATH]… [--output FILE]"
kernel= output= extra= added=
while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || fail "$usage"
    case $1 in
    --kernel) kernel=$2 ;;
    --with) extra="$extra $2" ;;
    --add)
        case $2 in
        *:/*) ;;
        *) fail "--add $2: give HOSTPATH:GUESTPATH, the guest's path absolute" ;;
        esac
        [ -e "${2%%:*}" ] || fail "--add $2: there is no ${2%%:*}"
        added="$added$2
"
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
        (cd "$(dirname "$host")" && find "$(basename "$host")" -printf '%P %y %m %l\n' | sort &&
            find "$(basename "$host")" -type f -print0 | sort -z | xargs -0r sha256sum)
    done
}

# Which version of which package. Asking apt takes a second: not again while its lists are unchanged.
mkdir -p "$cache/debs" "$cache/images"
words=$(printf '%s\n' $base -- $extra | sha256sum | cut -c1-12)
resolved=$cache/debs/resolved-$words
resolve() {
    packages=$base
    if [ -n "$extra" ]; then
        : >"$1.status" # as on an empty system, so that nothing counts as installed
        # shellcheck disable=SC2086  # a list of words
        apt-get install --simulate -qq --no-install-recommends -o Dir::State::status="$1.status" \
            -o Debug::NoLocking=1 $extra >"$1.plan" 2>&1 ||
            fail "apt cannot provide$extra: $(grep -m 1 '^E:' "$1.plan" || echo 'see apt-cache policy')"
        packages="$packages $(sed -n 's/^Inst \([^ ]*\) .*/\1/p' "$1.plan")"
        rm -f "$1.status" "$1.plan"
    fi
    # shellcheck disable=SC2086
    # In an empty folder: of what is there already it says nothing.
    mkdir -p "$1.empty"
    (cd "$1.empty" && apt-get download --print-uris -qq $packages) >"$1.uris" 2>"$1.log" ||
        fail "apt does not know every package ($(grep -m 1 '^E:' "$1.log")): run 'apt-get update' as root first"
    awk '{print $2}' "$1.uris" | sort -u >"$1.new"
    rm -rf "$1.uris" "$1.log" "$1.empty"
    mv "$1.new" "$1"
}
if [ ! -s "$resolved" ] || [ /var/lib/apt/lists -nt "$resolved" ]; then
    resolve "$resolved"
fi

key=$({
    cat "$0" "$here/guest_modules.py" "$here/../voidbox/boot/newc.py" "$resolved"
    find -L "$agent" -name '*.py' | sort | xargs cat
    [ -z "$kernel" ] || cat "$beside/config"
    echo "$release"
    hash_added
} | sha256sum | cut -c1-12)
target=$cache/images/guest-$release-$key

finish() {
    if [ -n "$output" ]; then
        cp "$target/initramfs.cpio" "$output.part" && mv "$output.part" "$output" ||
            fail "cannot write $output"
        echo "$output"
        exit
    fi
    # What --with and --add make of it is not for everybody.
    [ -n "$extra$added" ] || ln -sfn "$(basename "$target")" "$cache/images/current-$release"
    echo "$target/initramfs.cpio"
    exit
}
[ ! -d "$target" ] || finish

echo "building the guest image: half a minute, once" >&2
work=$(mktemp -d "$cache/images/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
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
        fail "cannot download packages ($(grep -m 1 '^E:' "$work/log")): is there a network?"
    mv "$work"/debs/*.deb "$cache/debs/"
fi

for folder in usr/bin usr/lib usr/lib64 usr/sbin dev proc sys run root home/sandbox workspace etc/voidbox \
    tmp usr/lib/voidbox var/tmp var/log; do
    mkdir -p "$root/$folder"
done
for folder in bin lib lib64 sbin; do ln -s usr/$folder "$root/$folder"; done
chmod 700 "$root/root"
while read -r deb; do
    dpkg-deb --fsys-tarfile "$cache/debs/$deb" |
        tar -x -C "$root" --no-same-owner --keep-directory-symlink 2>"$work/log" ||
        fail "cannot unpack $deb: $(tail -1 "$work/log"); is the disk full?"
done <"$resolved"
cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$work/certificates"
(
    cd "$root/usr/share"
    rm -rf doc man info locale lintian bug binfmts initramfs-tools ca-certificates
    rm -rf ../lib/x86_64-linux-gnu/gconv # iconv's tables: Python brings its own
    cd ../lib/python3.11
    rm -rf test idlelib lib2to3 pydoc_data ensurepip distutils config-3.11-* tkinter turtledemo
)
find "$root" -name __pycache__ -prune -exec rm -rf {} +
mkdir -p "$root/etc/ssl/certs"
mv "$work/certificates" "$root/etc/ssl/certs/ca-certificates.crt"

for applet in $("$root/usr/bin/busybox" --list); do
    [ -e "$root/usr/bin/$applet" ] || [ -e "$root/usr/sbin/$applet" ] ||
        ln -s busybox "$root/usr/bin/$applet"
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
export PATH="${PATH:-/usr/local/bin:/usr/bin:/bin}"
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

sys.path.insert(0, "/usr/lib/voidbox")
from guest_agent.__main__ import main

main(sys.argv[1:])
X
chmod 755 "$root/init"
if [ -n "$kernel" ]; then
    "$python" "$here/guest_modules.py" "$beside/config" "$beside/lib/modules/$release" "$root" || exit 1
else
    : >"$root/usr/lib/voidbox/modules"
fi
printf '%s' "$added" | while IFS=: read -r host guest; do
    mkdir -p "$root$(dirname "$guest")"
    [ ! -e "$root$guest" ] || fail "--add $host:$guest: the image has a $guest already"
    cp -a "$host" "$root$guest" || fail "--add $host:$guest: cannot copy it"
done

# The image's own Python compiles for itself, which shows too that it starts.
# The hash seed decides the order of constant sets in the compiled files.
image_python() {
    env -i PYTHONHASHSEED=0 PYTHONHOME="$root/usr" "$root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" \
        --library-path "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/python3.11" "$@"
}
# -B: what it imports for that leaves no files of another kind.
image_python -B -m compileall -q -s "$root" -p / --invalidation-mode unchecked-hash \
    "$root/usr/lib/python3.11" "$root/usr/lib/voidbox" >"$work/log" 2>&1 ||
    fail "the image's Python does not work: $(tail -1 "$work/log")"
image_python -IBS -c "
import sys; sys.path.insert(0, '$root/usr/lib/voidbox')
import guest_agent.server, guest_agent.boot, hashlib
import bz2, ctypes, curses, lzma, readline, sqlite3, ssl, uuid, zlib" >"$work/log" 2>&1 ||
    fail "the image is not whole: $(tail -1 "$work/log")"

mkdir "$work/image"
# urandom: Python reads it at its start where the kernel has no entropy yet, before /dev is mounted.
PYTHONPATH=$here/.. "$python" -m voidbox.boot.newc "$root" "$work/image/initramfs.cpio" \
    --node /dev/console:5:1 --node /dev/null:1:3 --node /dev/urandom:1:9 || fail "cannot pack the image: is the disk full?"
publish "$work/image" "$target"
finish
