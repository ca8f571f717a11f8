"""E2B's code interpreter SDKs, unmodified, against the server and its bridge, with stand-ins.

`make sdks` fetches them, and a Python with ipykernel that takes the place of an image's. All
"guests" are this machine, so there is one interpreter at a time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.serve.conftest import StandIn
from tests.unit.serve.sdk_versions import SDKS, Fetched, with_package
from tests.unit.serve.test_sdks import check_all, run, server

__all__ = ["server"]

pytestmark = pytest.mark.slow

KERNELS = SDKS / "py-interpreter" / "bin" / "python"


@pytest.fixture(autouse=True)
def ended(server: StandIn) -> Iterator[None]:
    """The next test has another interpreter: a guest's would have ended with its machine."""
    yield
    own_network = os.stat(f"/proc/{server.process.pid}/ns/net").st_ino
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            is_bridge = words[1:4] == [b"-m", b"bridge", b"49999"]
            if is_bridge and os.stat(folder / "ns" / "net").st_ino == own_network:
                os.kill(int(folder.name), signal.SIGKILL)


def needs(*paths: Path) -> None:
    if not all(path.exists() for path in paths):
        pytest.skip("make sdks fetches E2B's SDKs and ipykernel")


@pytest.mark.parametrize(
    "sdk", with_package("python", "e2b-code-interpreter"), ids=lambda sdk: sdk.name
)
def test_python(server: StandIn, sdk: Fetched) -> None:
    needs(KERNELS)
    check_all(server, sdk, "interpreter.py", KERNELS)


@pytest.mark.parametrize(
    "sdk", with_package("javascript", "@e2b/code-interpreter"), ids=lambda sdk: sdk.name
)
def test_javascript(server: StandIn, sdk: Fetched) -> None:
    needs(KERNELS)
    check_all(server, sdk, "interpreter.mjs", KERNELS)


def test_an_image_without_ipykernel(server: StandIn, tmp_path: Path) -> None:
    """It is said, rather than that a port is closed."""
    script = (
        "import json\nfrom e2b_code_interpreter import Sandbox\n"
        "box = Sandbox.create(envs={'PATH': '/nowhere:/usr/bin:/bin'})\n"
        "try:\n    box.run_code('1')\n    text = 'it ran'\n"
        "except Exception as error:\n    text = str(error)\n"
        "box.kill()\nprint(json.dumps({'text': text}))"
    )
    python = with_package("python", "e2b-code-interpreter")[-1].program
    needs(python)
    found = run(server, [str(python), "-c", script])
    assert "this template has no ipykernel" in found["text"], found
