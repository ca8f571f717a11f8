#!/bin/sh
# Build the guest image; print the path of its initramfs. voidbox/setup/guest_image.py tells of it.
#
#   scripts/build_guest_image.sh [--kernel FILE] [--with PACKAGE]… [--add HOSTPATH:GUESTPATH]…
#                                [--output FILE]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/${VENV:-.venv}/bin/python
[ -x "$python" ] || python=python3
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m voidbox.setup image "$@"
