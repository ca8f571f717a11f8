"""A server whose sandboxes have everything but the virtual machine; see sandbox/fake_owner.py.

    python -m tests.unit.serve.standin FOLDER [HOST:PORT [SETTINGS]]

Their "guests" are programs of this machine, so commands and files are this machine's. SETTINGS are
ServeConfig's, in JSON.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path

from voidbox.sandbox import launch as starting
from voidbox.sandbox.launch import environment
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import launching
from voidbox.serve.config import ServeConfig, parse_listen
from voidbox.serve.server import serve

FAKE_OWNER = "tests.unit.sandbox.fake_owner"


def main(argv: list[str]) -> int:
    folder = Path(argv[0])
    host, port = parse_listen(argv[1] if len(argv) > 1 else "127.0.0.1:0")
    settings = json.loads(argv[2]) if len(argv) > 2 else {}
    image = folder / "image.cpio"
    if not image.exists():  # what a snapshot rests on must not change
        image.write_text(json.dumps({"mode": ""}))
        (folder / "kernel").touch()
        (folder / "work").mkdir()
    os.environ["VOIDBOX_STATE"] = str(folder / "state")
    launching.launch = functools.partial(starting.launch, owner=FAKE_OWNER)
    launching.make_zygote = lambda: Zygote(FAKE_OWNER, environment())
    starting.wake = functools.partial(starting.wake, owner=FAKE_OWNER)
    options = {
        "kernel": str(folder / "kernel"),
        "jail": "off",  # the fake machine is other processes
        "user": str(os.getuid()),
    }
    config = ServeConfig(
        host=host,
        port=port,
        templates={"base": str(image), "code-interpreter-v1": str(image)},
        options=options,
    )
    return serve(config._replace(**settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
