"""`python -m voidbox.mcp_server`: the same as `voidbox mcp`."""

import sys

from voidbox.cli import main

if __name__ == "__main__":
    sys.exit(main(["mcp", *sys.argv[1:]]))
