#!/bin/sh
# Fetch E2B's SDKs from PyPI and, where there is npm, from npm, for the tests of `voidbox serve`:
# the oldest versions that are promised, some in between, the newest that were tried. Quick when
# they are there. tests/unit/serve/sdk_versions.py reads which: docs/serve.md has them as a table.
#   scripts/fetch_sdks.sh [frameworks]      frameworks: agents that use the SDKs, too
set -eu
. "$(dirname "$0")/../kernel/cache.sh"

mkdir -p "$cache/sdks"

# python NAME PACKAGE …
python() {
    target=$cache/sdks/$1
    shift
    [ -e "$target/.done" ] && return
    rm -rf "$target"
    python3 -m venv "$target"
    "$target/bin/pip" install -q --disable-pip-version-check "$@"
    touch "$target/.done"
}

# javascript NAME PACKAGE …
javascript() {
    target=$cache/sdks/$1
    shift
    [ -e "$target/.done" ] && return
    rm -rf "$target"
    mkdir "$target"
    echo '{"private": true}' >"$target/package.json"
    (cd "$target" && npm install --silent --no-audit --no-fund "$@")
    touch "$target/.done"
}

python py-e2b-2.7.0 e2b==2.7.0
python py-e2b-2.30.0 e2b==2.30.0
python py-e2b-2.63.0 e2b==2.63.0 e2b-code-interpreter==2.11.5
python py-e2b-code-interpreter-2.11.0 e2b-code-interpreter==2.11.0 e2b==2.63.0
python py-e2b-code-interpreter-2.11.3 e2b-code-interpreter==2.11.3 e2b==2.63.0
# What runs code, in the place of an image's.
python py-interpreter ipykernel==7.1.0 matplotlib pandas
# The dashboard's test drives a Chromium that is here: it is not fetched.
if command -v chromium >/dev/null; then
    python py-playwright playwright==1.65.2
fi
if [ "${1:-}" = frameworks ]; then
    python py-smolagents smolagents==1.26.0 e2b-code-interpreter==2.11.5
    python py-langchain langchain-e2b==0.0.6
fi
if command -v npm >/dev/null; then
    javascript js-e2b-2.16.0 e2b@2.16.0
    javascript js-e2b-2.36.1 e2b@2.36.1
    javascript js-e2b-2.51.0 e2b@2.51.0 @e2b/code-interpreter@2.8.0
    javascript js-code-interpreter-2.7.2 @e2b/code-interpreter@2.7.2 e2b@2.39.0
else
    echo "no npm: the tests of E2B's JavaScript SDK are skipped" >&2
fi
