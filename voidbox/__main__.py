"""`python -m voidbox`."""

import sys

from voidbox.cli import main

if __name__ == "__main__":
    sys.exit(main())
