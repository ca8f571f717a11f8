"""What a zygote forks, which says how it was started, on its status descriptor, and ends."""

from __future__ import annotations

import json
import os


def main(argv: list[str]) -> int:
    folder, _, status_fd = argv
    told = {"folder": folder, "environment": dict(os.environ), "session": os.getsid(0)}
    os.write(int(status_fd), json.dumps(told).encode())
    return 0
