# Sourced by the scripts that download or build: the cache, and fetching Debian packages into it
# without root. Expects `set -eu`.

cache=${VOIDBOX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/voidbox}
mkdir -p "$cache"

fail() { # fail MESSAGE: one line, and out
    echo "$(basename "$0"): $1" >&2
    exit 1
}

# fetch_deb PACKAGE[=VERSION] FOLDER: unpack a Debian package into FOLDER.
fetch_deb() {
    command -v apt-get >/dev/null || fail "apt-get is missing: this fetches Debian packages"
    download=$(mktemp -d "$cache/tmp.XXXXXX")
    if ! (cd "$download" && apt-get download -qq "$1" >log 2>&1); then
        reason=$(grep -m 1 '^E:' "$download/log" || echo "no reason given")
        rm -rf "$download"
        fail "cannot download $1 ($reason): is there a network, and does 'apt-get update' work?"
    fi
    mkdir -p "$2"
    dpkg -x "$download"/*.deb "$2"
    rm -rf "$download"
}

# publish TEMPORARY FINAL: give a finished folder its name; whoever came first wins.
publish() {
    chmod 755 "$1"
    mv -T "$1" "$2" 2>/dev/null || rm -rf "$1"
    [ -d "$2" ] || fail "cannot create $2: is the disk full?"
}
