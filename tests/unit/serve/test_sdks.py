"""E2B's own SDKs, as PyPI and npm have them, against the server; with no way out of where they run.

`make sdks` fetches them. Each version runs what is in sdk_checks/, against sandboxes with
everything but the virtual machine; tests/e2e/test_serve.py does so with real ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serve.conftest import StandIn
from tests.unit.serve.sdk_versions import Fetched, with_package

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "sdk_checks"
# The oldest that is promised, one in the middle, the newest; see docs/serve.md.
PYTHON = with_package("python", "e2b")
JAVASCRIPT = with_package("javascript", "e2b")
_LIMIT_S = 900
# A network namespace with a loopback alone. Who is not root needs a user namespace for it.
_AS_USER = () if os.geteuid() == 0 else ("--user", "--map-current-user", "--keep-caps")
_ISOLATE = ("unshare", "--net", *_AS_USER, "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
_ENTER = ("--net",) if os.geteuid() == 0 else ("--net", "--user", "--preserve-credentials")


def _can_isolate() -> bool:
    return subprocess.run([*_ISOLATE, "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    if not _can_isolate():
        pytest.skip("this user can make no network namespace; see unshare(1)")
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        server = StandIn(Path(folder), {}, _ISOLATE)
        try:
            yield server
        finally:
            server.close()


def run(server: StandIn, command: list[str], **environment: str) -> dict[str, str]:
    """Run checks beside the server, where nothing but the server can be reached."""
    inside = ("nsenter", "--target", str(server.process.pid), *_ENTER)
    url = f"http://127.0.0.1:{server.port}"
    own = {"E2B_API_KEY": server.key, "E2B_API_URL": url, "E2B_SANDBOX_URL": url}
    done = subprocess.run(
        [*inside, *command],
        env={"PATH": os.environ["PATH"], "HOME": str(server.folder), **own, **environment},
        capture_output=True, text=True, timeout=_LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert found
    return found


def check_all(server: StandIn, sdk: Fetched, checks: str, argument: Path) -> None:
    """Run the checks of a language with a version of its SDK."""
    if not sdk.program.exists():
        pytest.skip("make sdks fetches E2B's SDKs; those of JavaScript where there is npm")
    program = str(sdk.program) if sdk.language == "python" else "node"
    found = run(server, [program, str(HERE / checks), str(argument)], SDK_FOLDER=str(sdk.folder))
    wrong = {name: why for name, why in found.items() if why}
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("sdk", PYTHON, ids=lambda sdk: sdk.name)
def test_python(server: StandIn, sdk: Fetched, tmp_path: Path) -> None:
    check_all(server, sdk, "checks.py", tmp_path)


@pytest.mark.parametrize("sdk", JAVASCRIPT, ids=lambda sdk: sdk.name)
def test_javascript(server: StandIn, sdk: Fetched, tmp_path: Path) -> None:
    check_all(server, sdk, "checks.mjs", tmp_path)
