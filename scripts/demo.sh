#!/bin/sh
# Run a command in a fresh VM, in the kernel and the image of the runtime wheel, which are installed.
set -eu
cd "$(dirname "$0")/.."
python=${VENV:-.venv}/bin/python
echo "+ voidbox run -- python3 -c '...'"
scripts/with-kvm -- "$python" -m voidbox run --verbose --timeout 120 -- \
    python3 -c 'import os; print(f"Hello from Linux {os.uname().release}, as user {os.getuid()}.")'
echo "Demo completed. For a shell of your own:"
echo "  scripts/with-kvm -- .venv/bin/python -m voidbox run"
echo "For a coding agent in a sandbox:"
echo "  scripts/with-kvm -- .venv/bin/python examples/claude_in_voidbox.py"
