#!/bin/sh
# Run a command in a fresh VM, in the default kernel and image.
set -eu
cd "$(dirname "$0")/.."
# Debian's kernel is fetched in a moment; the minimal one, the default once built, takes minutes.
. kernel/cache.sh
kernel=$(readlink -e "$cache/kernels/current-minimal/bzImage" || scripts/with-apt kernel/fetch_debian.sh cloud)
image=$(scripts/with-apt scripts/build_guest_image.sh --kernel "$kernel") # in an echo its failure would be lost
echo "image: $image"
echo "+ voidbox run -- python3 -c '...'"
scripts/with-kvm -- "${VENV:-.venv}/bin/python" -m voidbox run --verbose --timeout 120 -- \
    python3 -c 'import os; print(f"Hello from Linux {os.uname().release}, as user {os.getuid()}.")'
echo "Demo completed. For a shell of your own:"
echo "  scripts/with-kvm -- .venv/bin/python -m voidbox run"
echo "For a coding agent in a sandbox:"
echo "  scripts/with-kvm -- .venv/bin/python examples/claude_in_voidbox.py"
