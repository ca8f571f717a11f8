#!/bin/sh
# Make an image called "claude" of Debian and the Claude Code CLI, without root.
#
#   scripts/build_claude_rootfs.sh [--version VERSION] [--package NAME]… [--name IMAGE]
#                                  [--suite SUITE] [--mirror URL] [--tarball FILE] [--tar-only]
#
#   --version V    of @anthropic-ai/claude-code on npm; the newest by default, a program of some
#                  400 MB. 2.1.112 is the last that is JavaScript: with Debian's nodejs a sixth of that
#   --package NAME a Debian package more, for the agent to use
#   --name IMAGE   what the image is called
#   --suite, --mirror   the Debian release and where it comes from; bookworm, from the host's own
#   --tarball FILE the package, as `npm pack` has made it elsewhere: npm is not needed then
#   --tar-only     make no image: print the path of the archive that it would be made of
#
# The CLI is Anthropic's, all rights reserved. It is fetched from npm to this machine, for whoever runs
# this; nothing here may be passed on with it inside: no image, no archive, no commit.
set -eu
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../kernel/cache.sh"
python=$here/../${VENV:-.venv}/bin/python
[ -x "$python" ] || python=python3

usage="usage: build_claude_rootfs.sh [--version VERSION] [--package NAME]… [--name IMAGE] [--suite SUITE] [--mirror URL] [--tarball FILE] [--tar-only]"
version=latest packages= name=claude suite=bookworm mirror= tarball= tar_only=
while [ $# -gt 0 ]; do
    if [ "$1" = --tar-only ]; then
        tar_only=yes
        shift
        continue
    fi
    [ $# -gt 1 ] || fail "$usage"
    case $2 in
    '' | -*) fail "$1 $2: this has no sense; $usage" ;;
    *[!A-Za-z0-9._/:+~-]*)
        # A path may have any character.
        [ "$1" = --tarball ] || fail "$1 $2: this has no sense; $usage"
        ;;
    esac
    case $1 in
    --version) version=$2 ;;
    --package) packages="$packages,$2" ;;
    --name) name=$2 ;;
    --suite) suite=$2 ;;
    --mirror) mirror=$2 ;;
    --tarball) tarball=$2 ;;
    *) fail "$usage" ;;
    esac
    shift 2
done
# Now, rather than after minutes.
why=$(PYTHONPATH=$here/.. "$python" -c '
import sys
from voidbox.errors import ConfigError
from voidbox.images.reference import parse_reference
try:
    parse_reference(sys.argv[1])
except ConfigError as error:
    sys.exit(str(error))' "$name" 2>&1) || fail "--name $name: ${why##*: }"
command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing: apt-get install mmdebstrap uidmap"
[ "$(id -u)" = 0 ] || command -v newuidmap >/dev/null ||
    fail "mmdebstrap needs newuidmap, unless it is root's: apt-get install uidmap"
[ -n "$tarball" ] || command -v npm >/dev/null ||
    fail "npm is missing: apt-get install npm, or give --tarball FILE"

cat >&2 <<'X'
Claude Code is (c) Anthropic PBC, all rights reserved. Its use is subject to the legal agreements at
https://code.claude.com/docs/en/legal-and-compliance. The image is for you: do not pass it on.
X

mkdir -p "$cache/claude"
work=$(mktemp -d "$cache/claude/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# view PACKAGE FIELD: what npm knows of a package; "" if nothing.
view() {
    npm view "$1" "$2" 2>/dev/null || true
}

# The program itself: since 2.1.113 in a package of its own, which the main one depends on.
if [ -z "$tarball" ]; then
    main=@anthropic-ai/claude-code
    version=$(view "$main@$version" version)
    [ -n "$version" ] || fail "npm has no such version of $main, or cannot be reached"
    package=$main
    [ -z "$(view "$main@$version" optionalDependencies | grep claude-code-linux-x64)" ] ||
        package=$main-linux-x64
    tarball=$cache/claude/$(echo "$package" | tr -d @ | tr / -)-$version.tgz
    if [ ! -s "$tarball" ]; then
        echo "fetching $package $version from npm" >&2
        # npm checks the archive against what the registry says of it.
        npm pack --silent --pack-destination "$work" "$package@$version" >/dev/null 2>"$work/why" ||
            fail "npm cannot fetch $package@$version: $(tail -1 "$work/why")"
        mv "$work"/*.tgz "$tarball"
    fi
fi
[ -s "$tarball" ] || fail "--tarball $tarball: there is no such file"

# What goes on top of Debian.
mkdir -p "$work/top/opt/claude-code" "$work/top/usr/local/bin"
tar -xz <"$tarball" -C "$work/top/opt/claude-code" --strip-components=1 --no-same-owner ||
    fail "$tarball is no package of npm's"
program=$work/top/opt/claude-code
if [ -f "$program/cli.js" ]; then
    packages=$packages,nodejs
    # What is for other machines.
    rm -rf "$program"/vendor/*/*-darwin "$program"/vendor/*/*-win32 "$program"/vendor/*/arm64*
    printf '#!/bin/sh\nexec node /opt/claude-code/cli.js "$@"\n' >"$work/top/usr/local/bin/claude"
    chmod 755 "$work/top/usr/local/bin/claude"
elif [ -x "$program/claude" ]; then
    ln -s /opt/claude-code/claude "$work/top/usr/local/bin/claude"
else
    fail "$tarball holds neither cli.js nor a program called claude"
fi
tar -cf "$work/top.tar" -C "$work/top" --owner=0 --group=0 --numeric-owner --sort=name .

include=bash,ca-certificates,git,python3,ripgrep$packages
key=$({
    cat "$here/build_claude_rootfs.sh"
    echo "$suite $mirror $include"
    sha256sum <"$tarball"
} | sha256sum | cut -c1-12)
target=$cache/claude/rootfs-$key.tar
if [ ! -s "$target" ]; then
    echo "building Debian $suite with $include: a minute or two, once" >&2
    # The user who commands run as, and the folder that they run in.
    # shellcheck disable=SC2016  # $1 is the hook's
    mmdebstrap --quiet --variant=minbase --include="$include" \
        --customize-hook='chroot "$1" useradd --uid 1000 --create-home --shell /bin/bash sandbox' \
        --customize-hook='mkdir "$1/workspace" && chown 1000:1000 "$1/workspace"' \
        --customize-hook="tar-in $work/top.tar /" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        "$suite" "$work/root.tar" ${mirror:+"$mirror"} >"$work/log" 2>&1 ||
        fail "mmdebstrap failed: $(grep -m 1 '^E:' "$work/log" || tail -1 "$work/log")"
    mv "$work/root.tar" "$target"
fi
if [ -n "$tar_only" ]; then
    echo "$target"
    exit
fi
"$python" -m voidbox image import "$name" "$target" --user sandbox --workdir /workspace
