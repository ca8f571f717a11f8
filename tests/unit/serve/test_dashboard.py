"""The dashboard: who gets in, what a page may do, and a walk through it in a browser."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.unit.serve.conftest import DEADLINE_S, Answer, StandIn, wait_until
from voidbox import defaults

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "sdk_checks"
PLAYWRIGHT = Path(defaults.cache_folder()) / "sdks" / "py-playwright" / "bin" / "python"
_LIMIT_S = 600


class Visitor:
    """A browser, as far as a server can tell."""

    def __init__(self, server: StandIn, *scopes: str) -> None:
        self.server = server
        self.name = f"visitor-{os.urandom(4).hex()}"
        self.key = server.add_key(self.name, *scopes)
        self.origin = f"http://127.0.0.1:{server.port}"
        self.cookie = ""
        answer = self.post("/login", key=self.key)
        assert (answer.status, answer.headers["location"]) == (303, "/dashboard")
        self.set_cookie = answer.headers["set-cookie"]
        self.cookie = self.set_cookie.partition(";")[0]

    def get(self, path: str = "", **headers: str) -> Answer:
        return self.server.request(
            "GET", f"/dashboard{path}", None, {"Cookie": self.cookie, **headers}
        )

    def post(self, path: str, origin: str | None = None, **form: str) -> Answer:
        origin = self.origin if origin is None else origin
        headers = {"Cookie": self.cookie, **({"Origin": origin} if origin else {})}
        body = urlencode(form).encode()
        return self.server.request("POST", f"/dashboard{path}", body, headers)


@pytest.fixture
def visitor(server: StandIn) -> Iterator[Visitor]:
    yield Visitor(server, "run")


def test_who_gets_in(server: StandIn, visitor: Visitor) -> None:
    assert {"HttpOnly", "SameSite=strict", "Path=/dashboard"} < set(visitor.set_cookie.split("; "))
    assert visitor.key not in visitor.set_cookie
    assert "Sandboxes" in visitor.get().body.decode()
    for cookie in ("", "voidbox_session=", visitor.cookie[:-1] + "x", "voidbox_session=W10=.00"):
        answer = server.request("GET", "/dashboard", None, {"Cookie": cookie})
        assert (answer.status, answer.headers["location"]) == (303, "/dashboard/login")
    assert visitor.post("/login", key="e2b_wrong").status == 401
    assert server.request("GET", "/").headers["location"] == "/dashboard"


def test_a_removed_key_is_out_at_once(server: StandIn, visitor: Visitor) -> None:
    boss = Visitor(server, "admin")
    page = boss.get("/keys").body.decode()
    row = next(row for row in page.split("<tr>") if visitor.name in row)
    found = re.search(r"/dashboard(/keys/\w+/remove)", row)
    assert found is not None and boss.post(found[1]).status == 303
    assert visitor.get().status == 303


@pytest.mark.parametrize("origin", ["", "http://evil.example", "null", "http://127.0.0.1:1"])
def test_other_origins_do_nothing(server: StandIn, visitor: Visitor, origin: str) -> None:
    before = server.records()
    assert visitor.post("/sandboxes", origin=origin, template="base").status == 403
    assert visitor.post("/login", origin=origin, key=visitor.key).status == 403
    assert server.records() == before


def test_headers_and_escapes(server: StandIn, visitor: Visitor) -> None:
    answer = visitor.get()
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert "<script>" not in answer.body.decode()  # none within the page
    odd = server.create(visitor.key, templateID="base:default", metadata={"<b>": "<script>"})
    hostile = f"{server.folder}/<img src=x>"
    Path(hostile).touch()
    page = visitor.get(f"/sandboxes/{odd.id}?{urlencode({'path': str(server.folder)})}")
    assert page.status == 200 and "&lt;img src=x&gt;" in page.body.decode()
    assert "<img src=x>" not in page.body.decode()
    query = urlencode({"path": hostile})
    file = visitor.get(f"/sandboxes/{odd.id}/file?{query}")
    assert file.headers["content-disposition"].startswith("attachment")
    for name in ("htmx.min.js", "xterm.js", "xterm.css", "addon-fit.js", "dashboard.js"):
        assert visitor.get(f"/static/{name}").status == 200
    assert visitor.get("/static/../pages.py").status == 404
    odd.kill()


def test_scopes_and_other_keys(server: StandIn, visitor: Visitor) -> None:
    box = server.create()
    assert visitor.get(f"/sandboxes/{box.id}").status == 404
    assert visitor.post(f"/sandboxes/{box.id}/kill").status == 404
    assert box.id not in visitor.get().body.decode()
    assert visitor.get("/keys").status == visitor.get("/audit").status == 403
    reader = Visitor(server, "read")
    assert reader.get().status == 200
    assert reader.post("/sandboxes", template="base").status == 403
    boss = Visitor(server, "admin")
    assert box.id in boss.get().body.decode()
    assert "create" in boss.get("/audit").body.decode()
    assert boss.post(f"/sandboxes/{box.id}/kill").status == 303
    assert boss.post(f"/sandboxes/{box.id}/kill").status == 404


def test_what_buttons_do(server: StandIn, visitor: Visitor) -> None:
    made = visitor.post("/sandboxes", template="base")
    assert made.status == 303
    path = made.headers["location"].removeprefix("/dashboard")
    assert "the guest boots" in visitor.get(f"/part{path}/log").body.decode()
    assert visitor.post(f"{path}/odd").status == 404
    assert visitor.post(f"{path}/snapshot").status == 303
    page = visitor.get("/snapshots").body.decode()
    (remove,) = re.findall(r"/dashboard(/snapshots/\w+/remove)", page)
    assert visitor.post(remove).status == 303
    assert visitor.post(f"{path}/pause").status == 303
    assert "paused" in visitor.get(f"/part{path}/facts").body.decode()
    assert visitor.post(f"{path}/resume").status == 303
    assert visitor.post(f"{path}/kill").status == 303
    assert "No sandbox runs." in visitor.get("/part/sandboxes").body.decode()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("origin", ["", "http://evil.example"])
def test_a_terminal_for_no_other_origin(server: StandIn, visitor: Visitor, origin: str) -> None:
    made = visitor.post("/sandboxes", template="base").headers["location"]
    headers = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Cookie": visitor.cookie,
        **({"Origin": origin} if origin else {}),
    }  # fmt: skip
    assert server.request("GET", f"{made}/terminal", None, headers).status == 403
    visitor.post(f"{made.removeprefix('/dashboard')}/kill")


def test_a_terminal_ends_with_its_key(server: StandIn, visitor: Visitor) -> None:
    made = visitor.post("/sandboxes", template="base").headers["location"]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
    headers = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Cookie": visitor.cookie,
        "Origin": visitor.origin,
    }  # fmt: skip
    connection.request("GET", f"{made}/terminal", headers=headers)
    assert connection.getresponse().status == 101
    server.remove_key(visitor.name)
    assert connection.sock is not None
    seen = bytearray()
    while data := connection.sock.recv(4096):  # what the shell says, and the end
        seen += data
    assert b"key is removed" in seen, bytes(seen)
    connection.close()
    boss = server.add_key(f"boss-{visitor.name}", "admin")
    assert server.api("DELETE", f"/sandboxes/{made.rpartition('/')[2]}", key=boss).status == 204


def test_what_a_sandbox_uses(server: StandIn, visitor: Visitor) -> None:
    made = visitor.post("/sandboxes", template="base").headers["location"]
    sandbox_id = made.rpartition("/")[2]

    def shows() -> bool:
        return "↓ 3.0 MiB ↑ 5.0 KiB" in visitor.get("/part/sandboxes").body.decode()

    wait_until(shows, "it is measured")
    facts = visitor.get(f"/part/sandboxes/{sandbox_id}/facts").body.decode()
    assert "<span>Network</span>↓ 3.0 MiB" in facts and "<span>Disk</span>" in facts
    boss = server.add_key(f"boss-{visitor.name}", "admin")
    text = server.api("GET", "/metrics", key=boss).body.decode()
    line = f'voidbox_sandbox_network_sent_bytes_total{{sandbox="{sandbox_id}"}} 5120\n'
    assert line in text
    visitor.post(f"/sandboxes/{sandbox_id}/kill")


@pytest.mark.slow
def test_in_a_browser(tmp_path: Path) -> None:
    if not PLAYWRIGHT.exists() or not Path("/usr/bin/chromium").exists():
        pytest.skip("needs Debian's chromium, and then make sdks")
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        server = StandIn(Path(folder), {})
        try:
            boss = server.add_key("boss", "admin")
            url = f"http://127.0.0.1:{server.port}"
            done = subprocess.run(
                [str(PLAYWRIGHT), str(HERE / "browser.py"), str(tmp_path), url, boss],
                capture_output=True, text=True, timeout=_LIMIT_S, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            wrong = {name: why for name, why in json.loads(done.stdout).items() if why}
            assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())
        finally:
            server.close()
