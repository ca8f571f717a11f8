"""The data plane of one sandbox, as a bare client sees it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.unit.serve.conftest import (
    DEADLINE_S,
    ENVELOPE,
    Box,
    StandIn,
    messages,
    output_of,
    start_thread,
    wait_until,
)

pytestmark = pytest.mark.slow

START = "/process.Process/Start"


def test_a_command(box: Box) -> None:
    output, end = box.run("/bin/sh", "-c", "echo out; echo err >&2; echo $A; pwd; exit 3")
    assert b"out\n" in output and b"err\n" in output
    assert end == {
        "exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"
    }  # fmt: skip


def test_variables_and_folders(box: Box, tmp_path: Path) -> None:
    process = {
        "cmd": "/bin/sh",
        "args": ["-c", "echo $A $E2B_SANDBOX $E2B_SANDBOX_ID; pwd"],
        "envs": {"A": "1"},
        "cwd": str(tmp_path),
    }
    found = box.stream(START, {"process": process, "stdin": False})
    text = output_of([message["event"] for message in found[:-1]]).decode()
    assert text == f"1 true {box.id}\n{tmp_path}\n"
    process["cwd"] = "/no/such"
    assert box.stream(START, {"process": process}) == [
        {"error": {"code": "invalid_argument", "message": "cwd '/no/such' does not exist"}}
    ]


def test_a_signal_is_an_end_that_was_no_exit(box: Box) -> None:
    _, end = box.run("/bin/sh", "-c", "kill -9 $$")
    assert end["exitCode"] == -1 and not end.get("exited") and end["status"] == "signal: killed"


def test_no_such_program(box: Box) -> None:
    found = box.stream(START, {"process": {"cmd": "/no/such", "args": []}})
    assert found[0]["error"]["code"] == "not_found"


def test_more_output_than_fits_anywhere(box: Box) -> None:
    output, end = box.run("/bin/sh", "-c", "head -c 5000000 /dev/zero")
    assert len(output) == 5_000_000 and end["exitCode"] == 0


class Live:
    """A stream that is still open."""

    def __init__(self, box: Box, path: str, fields: object, **headers: str) -> None:
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", box.server.port, timeout=DEADLINE_S
        )
        data = json.dumps(fields).encode()
        kind = {"Content-Type": "application/connect+json"}
        self._connection.request(
            "POST", path, ENVELOPE.pack(0, len(data)) + data, box.headers(**kind, **headers)
        )
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200
        self._buffer = b""

    def next(self) -> dict[str, Any]:
        while True:
            if len(self._buffer) >= ENVELOPE.size:
                _, length = ENVELOPE.unpack_from(self._buffer)
                end = ENVELOPE.size + length
                if len(self._buffer) >= end:
                    message, self._buffer = self._buffer[ENVELOPE.size : end], self._buffer[end:]
                    found: dict[str, Any] = json.loads(message)
                    return found
            data = self._answer.read1(65536)
            if not data:
                raise EOFError
            self._buffer += data

    def pid(self) -> int:
        return int(self.next()["event"]["start"]["pid"])

    def until(self, wanted: bytes) -> bytes:
        seen = b""
        while wanted not in seen:
            event = self.next()["event"]
            seen += output_of([event])
        return seen

    def close(self) -> None:
        # All of it: the connection alone would stay open for its answer.
        self._answer.close()
        self._connection.close()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_standard_input_and_its_end(box: Box) -> None:
    live = Live(box, START, {"process": {"cmd": "cat", "args": []}, "stdin": True})
    process = {"pid": live.pid()}
    fields = {"process": process, "input": {"stdin": b64(b"hello")}}
    assert box.call("/process.Process/SendInput", fields).json == {}
    assert live.until(b"hello") == b"hello"
    assert box.call("/process.Process/CloseStdin", {"process": process}).json == {}
    assert live.next()["event"]["end"]["status"] == "exit status 0"
    assert box.call("/process.Process/SendInput", fields).json["code"] == "not_found"
    bad = {"process": process, "input": {"stdin": "!"}}
    assert box.call("/process.Process/SendInput", bad).status in (400, 404)
    live.close()


def test_a_stream_of_input(box: Box) -> None:
    live = Live(box, START, {"process": {"cmd": "cat", "args": []}, "tag": "streamed"})
    live.pid()
    parts = [{"start": {"process": {"tag": "streamed"}}}, {"keepalive": {}}]
    parts += [{"data": {"input": {"stdin": b64(word)}}} for word in (b"one ", b"two")]
    encoded = [json.dumps(part).encode() for part in parts]
    body = b"".join(ENVELOPE.pack(0, len(data)) + data for data in encoded)
    kind = {"Content-Type": "application/connect+json"}
    path = "/process.Process/StreamInput"
    answer = box.server.request("POST", path, body, box.headers(**kind))
    assert list(messages(answer.body)) == [{}, {}]
    assert live.until(b"two") in (b"one two", b"two")
    live.close()


def test_a_client_that_leaves_and_one_that_comes_back(box: Box) -> None:
    script = "echo before; read x; echo after $x"
    live = Live(box, START, {"process": {"cmd": "/bin/sh", "args": ["-c", script]}})
    pid = live.pid()
    live.until(b"before")
    live.close()
    listed = box.call("/process.Process/List", {}).json["processes"]
    assert [one["config"]["args"] for one in listed if one["pid"] == pid] == [["-c", script]]
    again, third = (
        Live(box, "/process.Process/Connect", {"process": {"pid": pid}}) for _ in range(2)
    )
    assert again.pid() == third.pid() == pid
    fields = {"process": {"pid": pid}, "input": {"stdin": b64(b"this\n")}}
    assert box.call("/process.Process/SendInput", fields).status == 200
    for viewer in (again, third):
        assert viewer.until(b"after") == b"after this\n"
        assert viewer.next()["event"]["end"]["exitCode"] == 0
        viewer.close()
    late = box.stream("/process.Process/Connect", {"process": {"pid": pid}})
    assert "end" in late[-2]["event"]  # how it ended is still known


def test_signals(box: Box) -> None:
    live = Live(box, START, {"process": {"cmd": "sleep", "args": ["1000"]}})
    process = {"pid": live.pid()}
    fields = {"process": process, "signal": "SIGNAL_SIGTERM"}
    assert box.call("/process.Process/SendSignal", fields).status == 200
    assert live.next()["event"]["end"]["status"] == "signal: terminated"
    answer = box.call("/process.Process/SendSignal", fields)
    assert (answer.status, answer.json["code"]) == (404, "not_found")
    odd = {"process": process, "signal": "SIGNAL_SIGHUP"}
    assert box.call("/process.Process/SendSignal", odd).json["code"] == "unimplemented"
    assert box.call("/process.Process/SendSignal", {"signal": ["x"]}).status == 501
    live.close()


def test_a_time_limit_kills_and_a_sign_of_life_comes(box: Box) -> None:
    process = {"cmd": "sleep", "args": ["1000"]}
    headers = {"Connect-Timeout-Ms": "2500", "Keepalive-Ping-Interval": "1"}
    found = box.stream(START, {"process": process}, **headers)
    assert {"event": {"keepalive": {}}} in found
    assert found[-1]["error"]["code"] == "deadline_exceeded"
    pid = found[0]["event"]["start"]["pid"]

    def pids() -> list[int]:
        return [one["pid"] for one in box.call("/process.Process/List", {}).json["processes"]]

    wait_until(lambda: pid not in pids(), "it is killed")


def test_a_terminal(box: Box) -> None:
    fields = {
        "process": {"cmd": "/bin/sh", "args": ["-c", "stty size; read x; stty size; echo $x"]},
        "pty": {"size": {"rows": 33, "cols": 99}},
    }
    live = Live(box, START, fields)
    process = {"pid": live.pid()}
    assert b"33 99" in live.until(b"33 99")
    size = {"process": process, "pty": {"size": {"rows": 44, "cols": 111}}}
    assert box.call("/process.Process/Update", size).status == 200
    closed = box.call("/process.Process/CloseStdin", {"process": process})
    assert closed.json["code"] == "failed_precondition"
    typed = {"process": process, "input": {"pty": b64(b"typed\n")}}
    assert box.call("/process.Process/SendInput", typed).status == 200
    seen = b""
    while "end" not in (event := live.next()["event"]):
        seen += output_of([event])
    assert b"44 111" in seen and seen.count(b"typed\r\n") == 2  # the terminal's echo, and echo's
    live.close()


# What makes no sense.


def test_tokens(box: Box) -> None:
    for token in ("", "wrong", "é"):
        headers = {"E2b-Sandbox-Id": box.id, "Content-Type": "application/json"}
        if token:
            headers["X-Access-Token"] = token.encode().decode("latin-1")
        answer = box.server.request("POST", "/process.Process/List", b"{}", headers)
        assert (answer.status, answer.json["code"]) == (401, 401)
    assert box.server.request("GET", "/health", None, {"E2b-Sandbox-Id": box.id}).status == 204
    # A token that comes alone says which sandbox is meant.
    alone = {"X-Access-Token": str(box.token), "Content-Type": "application/json"}
    assert box.server.request("POST", "/process.Process/List", b"{}", alone).status == 200
    alone["X-Access-Token"] = "0" * 64
    assert box.server.request("POST", "/process.Process/List", b"{}", alone).status == 401
    insecure = Box(box.server, box.server.api("POST", "/sandboxes", {"templateID": "base"}).json)
    assert insecure.token is None
    assert insecure.run("/bin/echo", "open")[0] == b"open\n"
    insecure.kill()


@pytest.mark.parametrize("sandbox_id", ["nosuch", "0" * 12])
def test_no_such_sandbox(server: StandIn, sandbox_id: str) -> None:
    answer = server.request("GET", "/health", None, {"E2b-Sandbox-Id": sandbox_id})
    assert answer.status == 502
    assert answer.json == {
        "sandboxId": sandbox_id, "message": "The sandbox was not found", "code": 502
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_argument"),
        (b"\0\0\0", "invalid_argument"),
        (ENVELOPE.pack(0, 0xFFFFFFFF) + b"x", "resource_exhausted"),
        (ENVELOPE.pack(1, 2) + b"{}", "unimplemented"),
        (ENVELOPE.pack(0, 2) + b"[]", "invalid_argument"),
        (ENVELOPE.pack(0, 1) + b"{", "invalid_argument"),
        (ENVELOPE.pack(0, 2) + b"{}", "invalid_argument"),
    ],
)
def test_frames_that_are_none(box: Box, body: bytes, code: str) -> None:
    kind = {"Content-Type": "application/connect+json"}
    answer = box.server.request("POST", START, body, box.headers(**kind))
    assert answer.status == 200
    (end,) = messages(answer.body)
    assert end["error"]["code"] == code


def test_other_codecs_and_methods(box: Box) -> None:
    for kind in ("application/proto", "application/connect+proto", "text/plain", ""):
        headers = box.headers(**{"Content-Type": kind})
        assert box.server.request("POST", START, b"", headers).status == 415
    json_type = {"Content-Type": "application/json"}
    answer = box.server.request("POST", "/process.Process/No", b"{}", box.headers(**json_type))
    assert (answer.status, answer.json["code"]) == (501, "unimplemented")
    assert box.server.request("POST", "/init", b"{}", box.headers()).status == 404
    assert box.server.request("GET", START, None, box.headers()).status == 405


def test_users(box: Box) -> None:
    nobody = {"Authorization": "Basic " + b64(b"no-such-user:")}
    answer = box.call("/filesystem.Filesystem/Stat", {"path": "/"}, **nobody)
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")
    for name in (b"root:", b"user:"):  # "user" is the default one's other name
        headers = {"Authorization": "Basic " + b64(name)}
        assert box.call("/filesystem.Filesystem/Stat", {"path": "/"}, **headers).status == 200
    odd = {"Authorization": "Basic !"}
    assert box.call("/filesystem.Filesystem/Stat", {"path": "/"}, **odd).status == 401


# Files.


def fs(box: Box, method: str, **fields: object) -> Any:
    return box.call(f"/filesystem.Filesystem/{method}", fields).json


def test_entries(box: Box, tmp_path: Path) -> None:
    folder = f"{tmp_path}/d"
    assert fs(box, "MakeDir", path=folder)["entry"]["type"] == "FILE_TYPE_DIRECTORY"
    assert fs(box, "MakeDir", path=folder)["code"] == "already_exists"
    (tmp_path / "d" / "f").write_text("12345")
    (tmp_path / "d" / "l").symlink_to("f")
    (tmp_path / "d" / "broken").symlink_to("nowhere")
    (tmp_path / "d" / "e").mkdir()
    (tmp_path / "d" / "e" / "deep").touch()
    os.chmod(tmp_path / "d" / "f", 0o640)
    assert fs(box, "MakeDir", path=f"{folder}/f")["code"] == "invalid_argument"
    entry = fs(box, "Stat", path=f"{folder}/f")["entry"]
    assert entry["size"] == 5 and entry["mode"] == 0o640 and entry["name"] == "f"
    assert entry["permissions"] == "-rw-r-----" and entry["path"] == f"{folder}/f"
    assert entry["modifiedTime"].endswith("Z") and entry["owner"] and entry["group"]
    link = fs(box, "Stat", path=f"{folder}/l")["entry"]
    assert link["type"] == "FILE_TYPE_FILE" and link["symlinkTarget"] == f"{folder}/f"
    broken = fs(box, "Stat", path=f"{folder}/broken")["entry"]
    assert broken["type"] == "FILE_TYPE_SYMLINK"
    names = [one["path"] for one in fs(box, "ListDir", path=folder)["entries"]]
    assert names == [f"{folder}/{name}" for name in ("broken", "e", "f", "l")]
    deep = [one["path"] for one in fs(box, "ListDir", path=folder, depth=2)["entries"]]
    assert f"{folder}/e/deep" in deep
    assert fs(box, "ListDir", path=f"{folder}/f")["code"] == "invalid_argument"
    assert fs(box, "ListDir", path=f"{folder}/no")["code"] == "not_found"
    assert fs(box, "Stat", path=f"{folder}/no")["code"] == "not_found"
    moved = fs(box, "Move", source=f"{folder}/f", destination=f"{folder}/new/g")
    assert moved["entry"]["path"] == f"{folder}/new/g"
    assert fs(box, "Move", source=f"{folder}/f", destination=f"{folder}/h")["code"] == "not_found"
    assert fs(box, "Remove", path=folder) == {} == fs(box, "Remove", path=folder)
    assert not (tmp_path / "d").exists()
    assert fs(box, "Stat", path="a\0b")["code"] == "invalid_argument"
    assert fs(box, "Remove", path="/")["code"] == "invalid_argument"


def test_watches(box: Box, tmp_path: Path) -> None:
    live = Live(
        box, "/filesystem.Filesystem/WatchDir", {"path": str(tmp_path), "includeEntry": True}
    )
    assert live.next() == {"start": {}}
    polled = fs(box, "CreateWatcher", path=str(tmp_path), recursive=True)["watcherId"]
    (tmp_path / "new").write_text("x")
    event = live.next()["filesystem"]
    assert (event["name"], event["type"]) == ("new", "EVENT_TYPE_CREATE")
    assert event["entry"]["path"] == f"{tmp_path}/new"
    seen: list[Any] = []

    def poll() -> bool:
        seen.extend(fs(box, "GetWatcherEvents", watcherId=polled)["events"])
        return {"name": "new", "type": "EVENT_TYPE_WRITE"} in seen

    wait_until(poll, "the watcher has both")
    assert fs(box, "RemoveWatcher", watcherId=polled) == {}
    assert fs(box, "GetWatcherEvents", watcherId=polled)["code"] == "not_found"
    assert fs(box, "CreateWatcher", path=f"{tmp_path}/new")["code"] == "invalid_argument"
    assert fs(box, "CreateWatcher", path="/no/such")["code"] == "not_found"
    live.close()


def put(box: Box, path: str, data: bytes, query: str = "", **headers: str) -> Any:
    kind = {"Content-Type": "application/octet-stream"}
    return box.server.request(
        "POST", f"/files?path={quote(path)}{query}", data, box.headers(**kind, **headers)
    )


def get(box: Box, path: str, **headers: str) -> Any:
    return box.server.request("GET", f"/files?path={quote(path)}", None, box.headers(**headers))


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_a_file_up_and_down(box: Box, tmp_path: Path, size: int) -> None:
    data, path = os.urandom(size), f"{tmp_path}/dir/ü 1"
    answer = put(box, path, data)
    assert answer.json == [{"path": path, "name": "ü 1", "type": "file"}]
    assert (tmp_path / "dir" / "ü 1").read_bytes() == data
    found = get(box, path, **{"Accept-Encoding": "gzip"})
    assert found.body == data and found.headers["content-length"] == str(size)


def test_compressed_parts_and_kernels_files(box: Box, tmp_path: Path) -> None:
    path = f"{tmp_path}/f"
    data = bytes(range(256)) * 5000
    assert put(box, path, gzip.compress(data), **{"Content-Encoding": "gzip"}).status == 200
    assert get(box, path).body == data
    part = get(box, path, Range="bytes=1000-1999")
    assert part.status == 206 and part.body == data[1000:2000]
    assert get(box, path, Range="bytes=-5").body == data[-5:]
    assert get(box, path, Range=f"bytes={len(data)}-").status == 416
    assert get(box, "/proc/version").body.startswith(b"Linux")
    assert put(box, path, b"no gzip", **{"Content-Encoding": "gzip"}).status == 400
    assert put(box, path, b"x", **{"Content-Encoding": "br"}).status == 415
    assert (tmp_path / "f").read_bytes() == data  # what failed has changed nothing
    # What was begun is gone once the agent sees that nothing more comes: the answer may be sooner.
    wait_until(lambda: list(tmp_path.iterdir()) == [tmp_path / "f"], "no part is left")


def test_files_that_cannot_be(box: Box, tmp_path: Path) -> None:
    assert get(box, f"{tmp_path}/no").status == 404
    assert get(box, str(tmp_path)).status == 400
    assert put(box, str(tmp_path), b"x").status == 400
    assert put(box, "", b"x").status == 400
    os.mkfifo(tmp_path / "fifo")
    assert get(box, f"{tmp_path}/fifo").status == 400
    no_user = get(box, f"{tmp_path}/no&username=nobody-here".replace("&", "%26"))
    assert no_user.status == 404
    query = urlencode({"path": "/", "username": "no-such"})
    assert box.server.request("GET", f"/files?{query}", None, box.headers()).status == 401


def form(*files: tuple[str, bytes], boundary: str = "xYz") -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def post(box: Box, body: bytes, query: str = "", **headers: str) -> Any:
    kind = {"Content-Type": 'multipart/form-data; boundary="xYz"'}
    return box.server.request("POST", f"/files{query}", body, box.headers(**kind, **headers))


def test_forms(box: Box, tmp_path: Path) -> None:
    files = (f"{tmp_path}/a%22b", b"one"), (f"{tmp_path}/sub/ü", b"\r\n--xYt\r\n"), (
        f"{tmp_path}/empty", b""
    )  # fmt: skip
    answer = post(box, form(*files))
    assert [one["name"] for one in answer.json] == ['a"b', "ü", "empty"]
    assert (tmp_path / 'a"b').read_bytes() == b"one"
    assert (tmp_path / "sub" / "ü").read_bytes() == b"\r\n--xYt\r\n"
    query = "?" + urlencode({"path": f"{tmp_path}/named"})
    assert post(box, form(("other", b"x")), query).json[0]["path"] == f"{tmp_path}/named"
    assert post(box, form(("x", b"x"), ("y", b"y")), query).status == 400
    assert post(box, form((f"{tmp_path}/cut", b"x"))[:-20]).status == 400
    assert not (tmp_path / "cut").exists()
    assert post(box, b"no form at all").status == 400
    assert post(box, form(("", b"x"))).status == 400


def test_metadata_of_files(box: Box, tmp_path: Path) -> None:
    path = f"{tmp_path}/f"
    answer = put(box, path, b"x", **{"X-Metadata-Made-By": "me"})
    if answer.status == 400 and "keeps no metadata" in answer.json["message"]:
        pytest.skip("this file system has no extended attributes")
    assert answer.json[0]["metadata"] == {"made-by": "me"}
    assert fs(box, "Stat", path=path)["entry"]["metadata"] == {"made-by": "me"}
    assert put(box, path, b"x").status == 200
    assert "metadata" not in fs(box, "Stat", path=path)["entry"]
    assert put(box, path, b"x", **{"X-Metadata-A": "x" * 5000}).status == 400
    assert put(box, path, b"x", **{"X-Metadata-A%": "x"}).status == 400


def signed(box: Box, path: str, operation: str, expiration: str = "") -> str:
    words = [path, operation, "", str(box.token), *([expiration] if expiration else [])]
    digest = hashlib.sha256(":".join(words).encode()).digest()
    signature = "v1_" + base64.b64encode(digest).decode().rstrip("=")
    more = {"signature_expiration": expiration} if expiration else {}
    return "/files?" + urlencode({"path": path, "signature": signature, **more})


def test_signatures(box: Box, tmp_path: Path) -> None:
    path = f"{tmp_path}/f"
    kind = {"Content-Type": "application/octet-stream"}
    server = box.server
    soon, past = str(int(time.time()) + 600), str(int(time.time()) - 1)
    # No header: the sandbox is found by its token's signature.
    assert server.request("POST", signed(box, path, "write"), b"data", kind).status == 200
    assert server.request("GET", signed(box, path, "read", soon)).body == b"data"
    for url in (
        signed(box, path, "read", past), signed(box, path, "write"), signed(box, path, "read")[:-3],
        f"/files?path={path}&signature=v1_", f"/files?path={path}&signature=%00",
        signed(box, path, "read", "soon"),
    ):  # fmt: skip
        answer = server.request("GET", url)
        assert (answer.status, answer.json["code"]) == (401, 401), url
    assert server.request("GET", f"/files?path={path}").status == 404
    # A wrong token never falls back to the signature.
    wrong = {"X-Access-Token": "wrong", "E2b-Sandbox-Id": box.id}
    assert server.request("GET", signed(box, path, "read"), None, wrong).status == 401


# Ports.


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"{self.path} {self.headers['Host']}".encode()
        self.send_response(203)
        self.send_header("X-Mine", "1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Echo, chunk by chunk."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        left = int(self.headers["Content-Length"])
        while left:
            data = self.rfile.read(min(left, 65536))
            left -= len(data)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """A port of the "guest" with a web server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = start_thread(web.serve_forever)
        yield web.server_address[1]
        web.shutdown()
        thread.join()


def on_port(box: Box, port: int, **more: str) -> dict[str, str]:
    return {"E2b-Sandbox-Id": box.id, "E2b-Sandbox-Port": str(port), **more}


def test_a_web_server_in_the_sandbox(box: Box, port: int) -> None:
    answer = box.server.request("GET", "/a%20b?c=%2F", None, on_port(box, port, Host="own.host"))
    assert answer.status == 203 and answer.headers["x-mine"] == "1"
    assert answer.body == b"/a%20b?c=%2F own.host"
    by_host = {"Host": f"{port}-{box.id}.sandbox.example:3000"}
    assert box.server.request("GET", "/x", None, by_host).status == 203
    data = os.urandom(3 << 20)
    assert box.server.request("POST", "/echo", data, on_port(box, port)).body == data


def test_ports_that_are_closed_or_speak_otherwise(box: Box) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        number = sock.getsockname()[1]
        answer = box.server.request("GET", "/", None, on_port(box, number))
        assert answer.status == 502 and answer.json["port"] == number
        assert answer.json["message"] == "The sandbox is running but port is not open"
        sock.listen()

        def talk() -> None:
            client, _ = sock.accept()
            with client:
                client.sendall(b"SSH-2.0-x\r\n")

        thread = start_thread(talk)
        assert box.server.request("GET", "/", None, on_port(box, number)).status == 502
        thread.join(DEADLINE_S)
    assert box.server.request("GET", "/", None, on_port(box, 70000)).status == 400


def test_a_port_that_is_not_public(server: StandIn, port: int) -> None:
    box = server.create(network={"allowPublicTraffic": False, "maskRequestHost": "me:${PORT}"})
    token = box.made["trafficAccessToken"]
    assert server.request("GET", "/", None, on_port(box, port)).status == 403
    headers = on_port(box, port, **{"E2B-Traffic-Access-Token": token})
    answer = server.request("GET", "/", None, headers)
    assert answer.status == 203 and answer.body == f"/ me:{port}".encode()
    box.kill()


def test_a_websocket_in_the_sandbox(box: Box) -> None:
    """A server that accepts, echoes one message in two parts, and closes with a code."""
    import wsproto
    from wsproto import events

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            ws = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
            while data := sock.recv(65536):
                ws.receive_data(data)
                for event in ws.events():
                    if isinstance(event, events.Request):
                        sock.sendall(ws.send(events.AcceptConnection(subprotocol="chat")))
                    elif isinstance(event, events.TextMessage):
                        for part, is_last in ((event.data, False), ("!", True)):
                            message = events.TextMessage(data=part, message_finished=is_last)
                            sock.sendall(ws.send(message))
                    elif isinstance(event, events.BytesMessage):
                        sock.sendall(ws.send(events.CloseConnection(code=4001, reason="bye")))

    thread = start_thread(serve)
    client = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    with socket.create_connection(("127.0.0.1", box.server.port), DEADLINE_S) as sock:
        headers = on_port(box, listener.getsockname()[1])
        request = events.Request(
            host="x", target="/ws?a=1", subprotocols=["chat"],
            extra_headers=[(k.encode(), v.encode()) for k, v in headers.items()],
        )  # fmt: skip
        sock.sendall(client.send(request))
        seen: list[Any] = []
        while not seen or not isinstance(seen[-1], events.CloseConnection):
            client.receive_data(sock.recv(65536))
            for event in client.events():
                seen.append(event)
                if isinstance(event, events.AcceptConnection):
                    sock.sendall(client.send(events.TextMessage(data="hello")))
                elif isinstance(event, events.TextMessage):
                    sock.sendall(client.send(events.BytesMessage(data=b"end")))
    accept, text, close = seen
    assert accept.subprotocol == "chat" and text.data == "hello!"
    assert (close.code, close.reason) == (4001, "bye")
    thread.join(DEADLINE_S)
    listener.close()


# Slow and vanishing clients, many, and a server that is killed.


def test_a_client_that_reads_slowly_loses_nothing(box: Box) -> None:
    live = Live(
        box, START, {"process": {"cmd": "/bin/sh", "args": ["-c", "head -c 8000000 /dev/zero"]}}
    )
    live.pid()
    time.sleep(1)  # it reads nothing meanwhile; the command waits
    size = 0
    while "end" not in (event := live.next()["event"]):
        size += len(output_of([event]))
    assert size == 8_000_000
    live.close()


@pytest.mark.slow
def test_two_hundred_clients_at_once(box: Box) -> None:
    problems: list[object] = []

    def client(number: int) -> None:
        try:
            output, end = box.run("/bin/sh", "-c", f"sleep 1; echo {number}")
            assert output == f"{number}\n".encode() and end["exitCode"] == 0
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE_S)
    assert not problems


def test_a_server_that_is_killed_finds_all_of_it_again() -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        server = StandIn(Path(folder), {})
        try:
            box = server.create(metadata={"a": "b"}, timeout=600)
            paused = server.create(autoPause=True, timeout=600)
            assert server.api("POST", f"/sandboxes/{paused.id}/pause").status == 204
            script = "echo up; read x; echo got $x"
            live = Live(box, START, {"process": {"cmd": "/bin/sh", "args": ["-c", script]}})
            pid = live.pid()
            live.until(b"up")
            server.kill()
            live.close()
            server.start()
            info = server.api("GET", f"/sandboxes/{box.id}").json
            assert info["metadata"] == {"a": "b"} and info["envdAccessToken"] == box.token
            assert server.api("GET", f"/sandboxes/{paused.id}").json["state"] == "paused"
            again = Live(box, "/process.Process/Connect", {"process": {"pid": pid}})
            assert again.pid() == pid
            fields = {"process": {"pid": pid}, "input": {"stdin": b64(b"it\n")}}
            assert box.call("/process.Process/SendInput", fields).status == 200
            again.until(b"got it")
            again.close()
            for one in (box, paused):
                assert server.api("DELETE", f"/sandboxes/{one.id}").status == 204
            assert server.records() == []
            assert "Traceback" not in server.log.read_text()
        finally:
            server.close()


def test_the_servers_log_shows_no_fault(box: Box) -> None:
    """The last one: nothing that the others did was a surprise to the server."""
    assert "Traceback" not in box.server.log.read_text()
