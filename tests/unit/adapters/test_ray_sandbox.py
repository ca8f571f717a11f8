"""Ray's own sandbox runtime, with virtual machines' stand-ins behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip(
    "ray.experimental.sandbox", reason="Ray 2.58 or later is not installed: make test-ray does that"
)

from ray.experimental.sandbox import (
    SandboxCreationError,
    SandboxExecError,
    SandboxNotFoundError,
    SandboxStatus,
    SandboxTimeoutError,
)

from voidbox.adapters.ray_sandbox import VoidboxBackend, VoidboxRuntime

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

DEADLINE_S = 60.0


@pytest.fixture
def runtime(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[VoidboxRuntime]:
    own = {key: value for key, value in options.items() if key not in ("host_memory", "image")}
    own["image"] = str(options["image"])  # a file: the stand-in is no image of the store
    made = VoidboxRuntime(**own)
    monkeypatch.setattr(made.image_manager, "pull_image", lambda image, timeout_seconds: image)
    yield made
    for id in list(made.backend._sandboxes):
        made.delete(id)


def test_all_that_rays_runtime_does(runtime: VoidboxRuntime, tmp_path: Any) -> None:
    id = runtime.create("python:3.12", env={"A": "b"}, timeout_seconds=DEADLINE_S)
    assert isinstance(runtime.backend, VoidboxBackend)
    done = runtime.exec(id, "echo $A; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_code) == ("b\n", "err\n", 3)
    assert done.duration_ms > 0
    assert runtime.exec(id, ["echo", "$A"]).stdout == "$A\n"
    assert runtime.exec(id, "pwd", cwd="/", env={"C": "d"}, shell="/bin/sh").stdout == "/\n"
    with pytest.raises(SandboxTimeoutError):
        runtime.exec(id, "sleep 1000", timeout=0.5)
    path = str(tmp_path / "file")
    runtime.write_file(id, path, "one")
    runtime.write_file(id, path, b"two", append=True)
    assert runtime.read_file(id, path) == b"onetwo"
    runtime.upload_file(id, path, f"{path}-up")
    runtime.download_file(id, f"{path}-up", f"{path}-down")
    with open(f"{path}-down") as file:
        assert file.read() == "onetwo"
    with pytest.raises(SandboxExecError):
        runtime.read_file(id, f"{path}-not")
    assert runtime.get_status(id) is SandboxStatus.RUNNING
    sandbox, _ = runtime.backend._find(id)
    sandbox.kill()
    with pytest.raises(SandboxExecError, match="ended"):  # and no result of a command
        runtime.exec(id, "true")
    runtime.delete(id)
    runtime.delete(id)
    with pytest.raises(SandboxNotFoundError):
        runtime.exec(id, "true")


def test_a_time_to_live(runtime: VoidboxRuntime) -> None:
    id = runtime.create("python:3.12", ttl_seconds=1, timeout_seconds=DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    sandbox, _ = runtime.backend._find(id)
    while sandbox.is_running():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_is_gvisors_alone(runtime: VoidboxRuntime) -> None:
    for wrong in ({"network": "host"}, {"capabilities": ["CAP_CHOWN"]}):
        with pytest.raises(SandboxCreationError):
            runtime.create("python:3.12", **wrong)
