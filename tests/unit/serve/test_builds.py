"""Template builds: what the SDKs' Template class asks for, with stand-ins for the machines."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from tests.unit.serve.conftest import DEADLINE_S, Answer, StandIn

pytestmark = pytest.mark.slow

HASH = "a" * 64


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_dot_", "."))
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def new(server: StandIn, name: str, key: str | None = None, **fields: object) -> dict[str, Any]:
    answer = server.api("POST", "/v3/templates", {"name": name, **fields}, key)
    assert answer.status == 202, answer
    found: dict[str, Any] = answer.json
    return found


def start(server: StandIn, made: dict[str, Any], **fields: object) -> Answer:
    path = f"/v2/templates/{made['templateID']}/builds/{made['buildID']}"
    return server.api("POST", path, {"fromTemplate": "base", **fields})


def wait(server: StandIn, made: dict[str, Any]) -> dict[str, Any]:
    path = f"/templates/{made['templateID']}/builds/{made['buildID']}/status"
    deadline = time.monotonic() + 4 * DEADLINE_S
    while True:
        found: dict[str, Any] = server.api("GET", path).json
        if found["status"] in ("ready", "error"):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def step(kind: str, *args: str, **more: object) -> dict[str, object]:
    return {"type": kind, "args": list(args), "force": False, **more}


def upload(server: StandIn, made: dict[str, Any], body: bytes, files_hash: str = HASH) -> Answer:
    link = server.api("GET", f"/templates/{made['templateID']}/files/{files_hash}")
    assert link.status == 201, link
    url = urlsplit(link.json["url"])
    return server.request("PUT", f"{url.path}?{url.query}", body)


@pytest.mark.slow
def test_a_template(server: StandIn, tmp_path: Path) -> None:
    made = new(server, "mine")
    assert made["names"] == made["aliases"] == ["mine"] and made["public"] is False
    app = archive(app__main_dot_py="print(1)", app__lib__a_dot_py="a", note="n")
    assert upload(server, made, app).status == 200
    assert server.api("GET", f"/templates/mine/files/{HASH}").json["present"] is True
    work = tmp_path / "work"
    steps = [
        step("WORKDIR", str(work)),
        step("ENV", "COLOUR", "blue green"),
        step("RUN", "echo $COLOUR > colour; pwd; echo odd >&2", "root"),
        step("COPY", "app", "copied/", "", "", filesHash=HASH),
        step("COPY", "note", f"{tmp_path}/as-file", "root", "0600", filesHash=HASH),
        step("USER", "root"),
        step("WORKDIR", "inner"),
    ]
    marker = tmp_path / "started"
    done = start(server, made, steps=steps, startCmd=f"sleep 1; touch {marker}; sleep 1000",
                 readyCmd=f"[ -e {marker} ]")  # fmt: skip
    assert done.status == 202
    assert start(server, made).status == 409
    found = wait(server, made)
    assert found["status"] == "ready", found["reason"]
    lines = {(one["level"], one["message"], one["step"]) for one in found["logEntries"]}
    assert ("info", str(work), "3") in lines and ("warn", "odd", "3") in lines
    assert (work / "colour").read_text() == "blue green\n"
    assert (work / "copied" / "main.py").read_text() == "print(1)"
    assert (work / "copied" / "lib" / "a.py").exists()
    assert (tmp_path / "as-file").read_text() == "n"
    assert (tmp_path / "as-file").stat().st_mode & 0o777 == 0o600
    assert marker.exists()
    box = server.create(templateID="mine", envVars={"MORE": "1"})
    output, _ = box.run("/bin/sh", "-c", "echo $COLOUR $MORE $(pwd)")
    assert output == f"blue green 1 {work}/inner\n".encode()
    box.kill()
    assert "mine" in [one["templateID"] for one in server.api("GET", "/templates").json]
    assert server.api("GET", "/templates/aliases/mine").json["templateID"] == "mine"
    assert server.api("GET", "/snapshots").json == []


@pytest.mark.slow
def test_it_is_its_keys_and_the_next_replaces_it(server: StandIn) -> None:
    other = server.add_key("builder2", "run")
    for number in range(2):
        made = new(server, "again")
        steps = [step("ENV", "NUMBER", str(number))]
        assert start(server, made, steps=steps).status == 202
        assert wait(server, made)["status"] == "ready"
        status = f"/templates/again/builds/{made['buildID']}/status"
        assert server.api("GET", status, key=other).status == 404
    assert server.api("POST", "/v2/sandboxes", {"templateID": "again"}, other).status == 404
    box = server.create(templateID="again")
    assert box.run("/bin/sh", "-c", "echo $NUMBER")[0] == b"1\n"
    box.kill()
    assert server.api("DELETE", "/templates/again").status == 204
    assert server.api("DELETE", "/templates/again").status == 404
    assert server.api("POST", "/v2/sandboxes", {"templateID": "again"}).status == 404


@pytest.mark.parametrize(
    ("fields", "at", "why"),
    [
        ({"steps": [step("RUN", "echo so; exit 3")]}, "1", "failed with exit code 3"),
        ({"steps": [step("COPY", "x", "/x", filesHash="b" * 64)]}, "1", "files were not sent"),
        ({"steps": [step("USER", "nobody-at-all")]}, "1", "invalid username"),
        ({"fromTemplate": "none-such"}, "base", "template 'none-such' not found"),
    ],
)
def test_what_fails_is_said(server: StandIn, fields: dict[str, object], at: str, why: str) -> None:
    made = new(server, "failing")
    assert start(server, made, **fields).status == 202
    found = wait(server, made)
    assert found["status"] == "error" and found["reason"]["step"] == at, found
    assert why in found["reason"]["message"]
    assert server.api("GET", "/templates/aliases/failing").status == 404


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"fromTemplate": "base", "fromImage": "x"}, 400),
        ({"fromTemplate": ""}, 400),
        ({"steps": {}}, 400),
        ({"steps": [step("RUN")]}, 400),
        ({"steps": [step("ENV", "A")]}, 400),
        ({"steps": [step("ENV", "A=B", "x")]}, 400),
        ({"steps": [step("COPY", "../x", "/", filesHash=HASH)]}, 400),
        ({"steps": [step("COPY", "/etc", "/", filesHash=HASH)]}, 400),
        ({"steps": [step("COPY", "x", "/")]}, 400),
        ({"steps": [step("COPY", "x", "/", "", "u+s", filesHash=HASH)]}, 400),
        ({"steps": [step("HEALTHCHECK", "x")]}, 501),
        ({"steps": [step("RUN", "x")] * 501}, 400),
        ({"fromImageRegistry": {"type": "aws"}}, 501),
        ({"secrets": ["x"]}, 501),
    ],
)
def test_what_cannot_be_built(server: StandIn, fields: dict[str, object], status: int) -> None:
    answer = start(server, new(server, "wrong"), **fields)
    assert answer.status == status and answer.json["message"], answer


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"name": ""}, 400),
        ({"name": "../x"}, 400),
        ({"name": "base"}, 400),
        ({"name": "x:"}, 400),
        ({"name": "x", "tags": ["v 2"]}, 400),
        ({"name": "x", "memoryMB": 1 << 20}, 400),
        ({"name": "x", "cpuCount": 64}, 400),
    ],
)
def test_what_no_template_is(server: StandIn, fields: dict[str, object], status: int) -> None:
    assert server.api("POST", "/v3/templates", fields).status == status


def test_uploads(server: StandIn) -> None:
    made = new(server, "sent")
    for files_hash in ("c" * 64, "d" * 64):
        assert upload(server, made, archive(x="1"), files_hash).status == 200
    link = server.api("GET", f"/templates/sent/files/{'e' * 64}").json
    assert link["present"] is False
    query = urlsplit(link["url"]).query
    # The signature is for one archive of one key.
    wrong = server.request("PUT", f"/templates/sent/files/{'f' * 64}/upload?{query}", b"x")
    assert wrong.status == 403
    assert server.request("PUT", f"/templates/sent/files/{HASH}/upload", b"x").status == 403
    aside = server.request("PUT", f"/templates/x/files/..%2f..%2fx/upload?{query}", b"x")
    assert aside.status in (400, 403, 404, 405)
    assert server.api("GET", "/templates/sent/files/..").status == 400
    assert upload(server, made, b"", "e" * 64).status == 400
    gone = server.add_key("uploader3", "run")
    link = server.api("GET", f"/templates/sent/files/{'e' * 64}", key=gone).json
    server.remove_key("uploader3")
    url = urlsplit(link["url"])
    assert server.request("PUT", f"{url.path}?{url.query}", archive(x="1")).status == 403
    for odd in ("ü", "a.b", "..", "a.1.2", "a." + "9" * 5000 + ".x"):
        query = urlencode({"signature": odd})
        answer = server.request("PUT", f"{url.path}?{query}", b"x")
        assert answer.status == 403, odd
    other = server.add_key("uploader2", "run")
    again = server.api("GET", f"/templates/sent/files/{'c' * 64}", key=other).json
    assert again["present"] is False


def test_the_servers_log_shows_no_fault(server: StandIn) -> None:
    assert "Traceback" not in server.log.read_text()
