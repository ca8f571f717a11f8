#!/bin/sh
# Fetch Debian's stock kernel, and print the path of its vmlinuz. voidbox/setup/kernel.py does it.
#
#   kernel/fetch_debian.sh [cloud|generic]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/${VENV:-.venv}/bin/python
[ -x "$python" ] || python=python3
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m voidbox.setup kernel "$@"
