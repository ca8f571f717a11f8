"""A worker as a program:

    python -m voidbox.sandbox.worker LEVEL REPORT ORDERS ASKS QUERIES CONSOLE [FD …]

All but the first are numbers of descriptors; those behind the five are to stay open.
"""

from __future__ import annotations

import gc
import logging
import socket
import sys

if __name__ == "__main__":
    gc.disable()  # before what there is to import; see be_worker
    from voidbox.sandbox.worker.process import be_worker

    level, *words = sys.argv[1:]
    report, *numbers = map(int, words)
    if len(numbers) < 4:
        raise SystemExit("usage: python -m voidbox.sandbox.worker LEVEL FD FD FD FD FD [FD …]")
    logging.getLogger("voidbox").setLevel(logging.INFO)
    socks = [socket.socket(fileno=number) for number in numbers[:4]]
    be_worker(socks, level, report, numbers[4:], is_inherited=False)
