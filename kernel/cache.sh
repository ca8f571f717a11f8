# Sourced by the scripts that download or build: the cache, and fetching Debian packages into it
# without root. Expects `set -eu`, and in $root the clone.

cache=${VOIDBOX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/voidbox}
mkdir -p "$cache"

fail() { # fail MESSAGE: one line, and out
    echo "$(basename "$0"): $1" >&2
    exit 1
}

# archive ACTION …: what voidbox itself does to have packages of Debian's; see voidbox/setup/__main__.py.
archive() {
    python=$root/${VENV:-.venv}/bin/python
    [ -x "$python" ] || python=python3
    PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "$root/scripts/with-apt" "$python" -m voidbox.setup "$@"
}

# newest PACKAGE: print the version that Debian's archive has.
newest() {
    archive version "$1" || exit 1
}

# fetch_deb PACKAGE FOLDER: unpack a Debian package into FOLDER, which must not be there yet.
fetch_deb() {
    archive unpack "$1" "$2" >/dev/null || exit 1
}

# publish TEMPORARY FINAL: give a finished folder its name; whoever came first wins.
publish() {
    chmod 755 "$1"
    mv -T "$1" "$2" 2>/dev/null || rm -rf "$1"
    [ -d "$2" ] || fail "cannot create $2: is the disk full?"
}
