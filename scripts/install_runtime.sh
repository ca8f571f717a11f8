#!/bin/sh
# Build the wheels that users install, and install the runtime's into the environment, so that what
# is tried and tested here is what they run. Quick when nothing has changed.
#
#   scripts/install_runtime.sh       leaves in build/wheels all that pip needs to install voidbox-kvm
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/${VENV:-.venv}
wheels=$root/build/wheels

wheel=$("$root/scripts/build_runtime_wheel.sh" "$wheels")
key=$(sha256sum <"$wheel")
if [ "$(cat "$venv/.runtime" 2>/dev/null)" != "$key" ]; then
    "$venv/bin/pip" install -q --disable-pip-version-check --no-index --no-deps --force-reinstall "$wheel"
    echo "$key" >"$venv/.runtime"
fi

key=$({
    cat "$root/pyproject.toml"
    find "$root/voidbox" "$root/guest_agent" -type f ! -name '*.pyc' -print0 | sort -z |
        xargs -0 sha256sum
} | sha256sum)
if [ "$(cat "$wheels/.voidbox" 2>/dev/null)" != "$key" ]; then
    "$venv/bin/pip" wheel -q --disable-pip-version-check --wheel-dir "$wheels" "$root"
    echo "$key" >"$wheels/.voidbox"
fi
