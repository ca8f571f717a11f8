"""`voidbox serve` with real guests, by E2B's own SDKs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import script
from tests.e2e.disk_images import INTERPRETER_USER, interpreter_image
from tests.unit.serve.conftest import ROOT, StandIn, wait_until
from tests.unit.serve.sdk_versions import Fetched, with_package
from tests.unit.serve.test_builds import new, start, step, wait
from voidbox import Sandbox

pytestmark = pytest.mark.boot

CHECKS = ROOT / "tests" / "unit" / "serve" / "sdk_checks"
_LIMIT_S = 900
# Builds in real guests are a test below; in the lab each takes its minute.
_WITHOUT = "templates templates_cache_and_tags"
_SERVE = """
import json, sys
from voidbox.serve.config import ServeConfig, parse_listen
from voidbox.serve.server import serve
host, port = parse_listen(sys.argv[2])
config = ServeConfig(host=host, port=port, state_folder=sys.argv[1])
sys.exit(serve(config._replace(**json.loads(sys.argv[3]))))
"""


class Server(StandIn):
    """The server itself: its sandboxes are virtual machines."""

    command = (sys.executable, "-c", _SERVE)

    @property
    def where(self) -> str:
        return str(self.folder / "state")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    templates = {"base": script("scripts/build_guest_image.sh")}
    with serving({"templates": templates}, {"memory": "256M"}) as server:
        yield server


@contextmanager
def serving(settings: dict[str, Any], options: dict[str, Any]) -> Iterator[Server]:
    kernel = script("kernel/build_minimal.sh") + "/bzImage"
    settings = {**settings, "options": {"kernel": kernel, **options}}
    with tempfile.TemporaryDirectory(prefix="vb-") as folder:
        server = Server(Path(folder), settings)
        try:
            yield server
        finally:
            server.close()


def run(server: Server, *command: str, folder: str = "/workspace/checks", **more: str) -> None:
    url = f"http://127.0.0.1:{server.port}"
    own = {"E2B_API_KEY": server.key, "E2B_API_URL": url, "E2B_SANDBOX_URL": url}
    done = subprocess.run(
        [*command, *([folder] if folder else [])],
        env={"PATH": os.environ["PATH"], "HOME": str(server.folder), **own, **more},
        capture_output=True, text=True, timeout=_LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout.splitlines()[-1])
    wrong = {name: why for name, why in found.items() if why}
    assert found and not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("sdk", with_package("python", "e2b"), ids=lambda sdk: sdk.name)
def test_python(server: Server, sdk: Fetched) -> None:
    if not sdk.program.exists():
        pytest.skip("make sdks fetches E2B's SDKs")
    folder = f"/workspace/{sdk.name}"
    run(server, str(sdk.program), str(CHECKS / "checks.py"), folder=folder, WITHOUT=_WITHOUT)


@pytest.mark.parametrize("sdk", with_package("javascript", "e2b"), ids=lambda sdk: sdk.name)
def test_javascript(server: Server, sdk: Fetched) -> None:
    if not sdk.program.exists():
        pytest.skip("make sdks fetches E2B's SDKs, where there is npm")
    folder = f"/workspace/{sdk.name}"
    checks = str(CHECKS / "checks.mjs")
    run(server, "node", checks, folder=folder, SDK_FOLDER=str(sdk.folder), WITHOUT=_WITHOUT)


def test_memory_outlives_a_pause_and_the_server(server: Server) -> None:
    """A pause keeps a real guest's processes, also while another server comes up."""
    box = server.create(timeout=600)
    found = box.run("/bin/sh", "-c", "(sleep 100000 & echo $!) ; echo 1 > /tmp/x")[0]
    sleeper = int(found)
    assert server.api("POST", f"/sandboxes/{box.id}/pause").status == 204
    server.kill()
    server.start()
    assert server.api("GET", f"/sandboxes/{box.id}").json["state"] == "paused"
    assert server.api("POST", f"/v2/sandboxes/{box.id}/connect", {"timeout": 600}).status == 201
    output, _ = box.run("/bin/sh", "-c", f"kill -0 {sleeper} && cat /tmp/x")
    assert output == b"1\n"
    forks = server.api("POST", f"/sandboxes/{box.id}/fork", {"count": 2}).json
    ids = [one["sandbox"]["sandboxID"] for one in forks]
    assert len({box.id, *ids}) == 3
    for sandbox_id in (box.id, *ids):
        assert server.api("DELETE", f"/sandboxes/{sandbox_id}").status == 204
    assert server.records() == []


def test_a_server_in_the_guest(server: Server) -> None:
    box = server.create(timeout=600)
    script = "cd /tmp; echo hello > index.html; exec python3 -m http.server 8000 --bind 127.0.0.1"
    box.stream(
        "/process.Process/Start",
        {"process": {"cmd": "/bin/sh", "args": ["-c", f"({script}) >/dev/null 2>&1 &"]}},
    )
    headers = {"E2b-Sandbox-Id": box.id, "E2b-Sandbox-Port": "8000"}
    for _ in range(100):
        answer = server.request("GET", "/index.html", None, headers)
        if answer.status == 200:
            break
        box.run("/bin/sleep", "0.3")
    assert answer.body == b"hello\n"
    box.kill()


def test_our_own_sdk_from_afar(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOIDBOX_API_KEY", server.key)
    with Sandbox.create(remote=f"http://127.0.0.1:{server.port}", envs={"A": "1"}) as sandbox:
        assert sandbox.commands.run("echo $A; uname -s").stdout == "1\nLinux\n"
        data = os.urandom(2_000_000)
        sandbox.files.write("f", data)
        assert sandbox.files.read("f", format="bytes") == data
        sandbox.suspend()
        sandbox.resume()
        assert len(sandbox.files.read("f", format="bytes")) == len(data)
    assert server.records() == []


def test_a_template_with_what_its_start_command_started(server: Server) -> None:
    made = new(server, "started")
    steps = [
        step("ENV", "COLOUR", "blue"),
        step("WORKDIR", "/srv/app"),
        step("RUN", "echo $COLOUR > colour"),
    ]
    begin = "sleep 100000 & echo $! > /tmp/pid; wait"
    assert (
        start(server, made, steps=steps, startCmd=begin, readyCmd="[ -s /tmp/pid ]").status == 202
    )
    found = wait(server, made)
    assert found["status"] == "ready", found["reason"]
    boxes = [server.create(templateID="started", timeout=600) for _ in range(2)]
    for box in boxes:
        output = box.run("/bin/sh", "-c", "pwd; cat colour; kill -0 $(cat /tmp/pid) && echo runs")[
            0
        ]
        assert output == b"/srv/app\nblue\nruns\n"
        box.kill()
    # The next build goes on from what the last RUN left; what its ENV says counts.
    again = new(server, "started", tags=["red"])
    steps[0] = step("ENV", "COLOUR", "red")
    moved = [steps[1], steps[2], steps[0]]
    assert start(server, again, steps=moved).status == 202
    assert wait(server, again)["status"] == "ready"
    last = new(server, "started", tags=["last"])
    assert (
        start(server, last, steps=moved, startCmd=begin, readyCmd="[ -s /tmp/pid ]").status == 202
    )
    found = wait(server, last)
    lines = [one["message"] for one in found["logEntries"]]
    assert found["status"] == "ready" and "CACHED RUN echo $COLOUR > colour" in lines, found
    box = server.create(templateID="started:last", timeout=600)
    words = "pwd; wc -c < colour; echo $COLOUR; kill -0 $(cat /tmp/pid) && echo runs"
    assert box.run("/bin/sh", "-c", words)[0] == b"/srv/app\n1\nred\nruns\n"
    box.kill()
    assert server.api("DELETE", "/templates/started").status == 204
    assert server.records() == []


def test_one_that_waited_outlives_the_server() -> None:
    """It was the pool's, forked off its zygote, and is its client's now."""
    templates = {"base": script("scripts/build_guest_image.sh")}
    with serving({"templates": templates, "waiting": 1}, {"memory": "256M"}) as server:
        boss = server.add_key("boss", "admin")

        def one_waits() -> bool:
            figures = server.api("GET", "/metrics", key=boss).body.decode()
            return 'voidbox_pool_sandboxes{state="warm"} 1\n' in figures

        wait_until(one_waits, "none waits")
        (waiting,) = server.records()
        box = server.create(timeout=600, envVars={"A": "1"}, metadata={"of": "me"})
        assert box.id == waiting
        assert box.run("/bin/sh", "-c", "echo $A; uname -s")[0] == b"1\nLinux\n"
        assert server.api("POST", f"/sandboxes/{box.id}/pause").status == 204
        path = f"/v2/sandboxes/{box.id}/connect"
        assert server.api("POST", path, {"timeout": 600}).status == 201
        assert box.run("/bin/sh", "-c", "echo $A")[0] == b"1\n"
        wait_until(one_waits, "no other one waits")
        server.kill()
        wait_until(lambda: server.records() == [box.id], "one waits still")
        server.start()
        assert box.run("/bin/sh", "-c", "echo $A")[0] == b"1\n"
        box.kill()
        sdk = with_package("python", "e2b")[-1]
        if sdk.program.exists():  # it is given one, too
            wait_until(one_waits, "none waits for the SDK")
            run(server, str(sdk.program), "-c", _ONE_THAT_WAITED, *server.records(), folder="")


# What E2B's own SDK makes of a sandbox that has waited.
_ONE_THAT_WAITED = """
import json, sys
from e2b import Sandbox
with Sandbox.create(envs={"A": "1"}, metadata={"of": "the SDK"}, timeout=120) as box:
    found = box.commands.run("echo $A; uname -s").stdout, box.get_info().metadata
    is_it = box.sandbox_id == sys.argv[1]
    box.files.write("note", "n")
    read = box.files.read("note")
    box.kill()
right = (("1\\nLinux\\n", {"of": "the SDK"}), True, "n")
print(json.dumps({"one that waited": "" if (found, is_it, read) == right else str((found, is_it))}))
"""


def test_the_code_interpreter() -> None:
    """By E2B's own SDKs, in the image that docs/serve.md builds."""
    python = with_package("python", "e2b-code-interpreter")[-1].program
    javascript = with_package("javascript", "@e2b/code-interpreter")[-1]
    image = interpreter_image(is_made=False)
    if not python.exists() or not image.exists():
        pytest.skip("make sdks fetches E2B's SDKs, make interpreter-image makes the image")
    templates = {"code-interpreter-v1": str(image)}
    options = {"memory": "1G", "user": INTERPRETER_USER}
    with serving({"templates": templates}, options) as server:
        checks = str(CHECKS / "interpreter.py")
        run(server, str(python), checks, "/usr/bin/python3", "real", folder="")
        if javascript.program.exists():  # where there is npm
            checks = str(CHECKS / "interpreter.mjs")
            folder = str(javascript.folder)
            run(server, "node", checks, "/usr/bin/python3", folder="", SDK_FOLDER=folder)
