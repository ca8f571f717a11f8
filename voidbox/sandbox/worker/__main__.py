"""A worker as a program: `python -m voidbox.sandbox.worker ORDERS ASKS QUERIES CONSOLE [FD …]`.

The numbers are those of descriptors; those behind the four are to stay open.
"""

from __future__ import annotations

import socket
import sys

from voidbox.sandbox.worker.process import be_worker

if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    if len(numbers) < 4:
        raise SystemExit("usage: python -m voidbox.sandbox.worker FD FD FD FD [FD …]")
    be_worker([socket.socket(fileno=number) for number in numbers[:4]], numbers[4:])
