#!/bin/sh
# Build the voidbox-runtime wheel: the minimal kernel, the agent's disk, the default image. Print its
# path. The same bytes from the same packages and tools; what is in it is listed in it. Quick when
# nothing has changed.
#
#   scripts/build_runtime_wheel.sh [FOLDER]      build/wheels by default
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/${VENV:-.venv}/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
output=${1:-$root/build/wheels}

kernel=$("$root/kernel/build_minimal.sh")
image=$(dirname "$("$root/scripts/build_guest_image.sh")")
default=$(dirname "$("$python" -m voidbox.setup default)")

mkdir -p "$output"
key=$({
    echo "$kernel $image $default"
    cat "$root/scripts/runtime_wheel.py" "$root/voidbox/version.py" "$root/voidbox/defaults.py"
} | sha256sum)
if [ "$(cat "$output/.runtime" 2>/dev/null)" = "$key" ]; then
    for wheel in "$output"/voidbox_runtime-*.whl; do
        [ ! -e "$wheel" ] || { echo "$wheel" && exit; }
    done
fi
rm -f "$output"/voidbox_runtime-*.whl
"$python" "$root/scripts/runtime_wheel.py" --kernel "$kernel" --image "$image" \
    --default "$default" --output "$output"
echo "$key" >"$output/.runtime"
