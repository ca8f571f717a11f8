"""Secrets with a real guest: a key that works in there, and is found nowhere but with its host.

One sandbox and its copies, one after another: each boot takes its time in the lab.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import script
from tests.unit.secrets.servers import https_server, make_ca
from voidbox import ConfigError, Sandbox, Secret
from voidbox.sandbox.state.store import Store
from voidbox.secrets.authority import issue

pytestmark = pytest.mark.boot

HOST = "host.voidbox.internal"  # this host's loopback, as the guest calls it
VALUE = "sk-ant-api03-" + "Kq3vX9Zb7LmN2pRt5WyC8dFgHjQsUaVe4T6iOo1B"
NEXT_VALUE = "sk-ant-api03-" + "Zz0yY1xX2wW3vV4uU5tT6sS7rR8qQ9pP0oO1nN2m"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server of this host, whose CA this host trusts."""
    ca = make_ca(HOST)
    (tmp_path / "world.pem").write_text(ca.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "world.pem"))
    with https_server(issue(ca, HOST)) as found:
        yield found


def memory_has(pid: int, wanted: bytes) -> bool:
    """Whether a process's memory has some bytes."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if "r" not in rights or line.endswith(("[vvar]\n", "[vsyscall]\n")):
                continue
            start, end = (int(number, 16) for number in span.split("-"))
            try:
                memory.seek(start)
                tail = b""
                while start < end:
                    piece = memory.read(min(4 << 20, end - start))
                    if not piece:
                        break
                    if wanted in tail + piece:
                        return True
                    tail, start = piece[-len(wanted) :], start + len(piece)
            except OSError:
                continue
    return False


def processes_of(sandbox: Any, store: Store) -> list[int]:
    """Return the numbers of a sandbox's processes."""
    first = store.read(sandbox.sandbox_id).pid
    found = [first]
    for name in os.listdir("/proc"):
        if name.isdigit():
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
            if parent == first:
                found.append(int(name))
    return found


def files_with(folder: Path, wanted: bytes) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and wanted in path.read_bytes()
    ]


@pytest.fixture
def state() -> Iterator[Path]:
    """A state folder whose path is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="vb-") as folder:
        yield Path(folder)


def test_the_key_works_inside_and_is_worthless_inside(
    server: Any, kernels: dict[str, str], tmp_path: Path, state: Path
) -> None:
    image = script("scripts/build_guest_image.sh", "--with", "curl", "--with", "netcat-openbsd")
    pcap = tmp_path / "frames.pcap"
    url = f"https://{HOST}:{server.port}"
    options: dict[str, Any] = {
        "kernel": f"{Path(kernels['minimal'])}",
        "image": image,
        "memory": 512,
        "allow_host_ports": [server.port],
        "state_folder": str(state),
    }
    secret = Secret("API_KEY", [f"{HOST}:{server.port}"], VALUE)
    with pytest.raises(ConfigError, match="closed by the network's rules"):
        Sandbox.create(**{**options, "allow_host_ports": []}, secrets=[secret])
    rule = f"* {HOST}:{server.port}/echo*"
    with Sandbox.create(**options, secrets=[secret], http=[rule], pcap=str(pcap)) as box:

        def fetch(one: Any, path: str, *words: str) -> tuple[str, str]:
            """Return the status and the body that the guest's curl sees."""
            done = one.commands.run(
                f"curl -sS -w '\n%{{http_code}}' -H \"x-api-key: $API_KEY\" "
                f"{' '.join(words)} {url}{path}",
                timeout=120,
            )
            assert not done.exit_code, done.stderr
            body, _, status = done.stdout.rpartition("\n")
            return status, body

        status, body = fetch(box, "/echo")
        placeholder = box.commands.run("echo $API_KEY").stdout.strip()
        assert status == "200" and placeholder in body and VALUE not in body
        assert placeholder.startswith("sk-ant-api03-") and placeholder != VALUE
        assert server.seen.headers("x-api-key") == [VALUE]
        status, body = fetch(box, "/other")
        assert status == "403" and "no rule" in body and len(server.seen.requests) == 1
        lines = [json.loads(line) for line in box.logs(source="http")]
        assert [line["status"] for line in lines] == [200, 403]
        assert lines[0]["secrets"] == ["API_KEY"]

        # Nowhere: the guest's files and processes, the machine's memory, what is kept on the disk.
        looked = box.commands.run(
            f"grep -rls -- {VALUE[20:]} /proc/[0-9]*/environ /home /etc /run /tmp /workspace",
            user="root",
        )
        assert looked.stdout == ""
        store = Store(str(state))
        keeper, *workers = processes_of(box, store)
        assert workers and not any(memory_has(pid, VALUE.encode()) for pid in workers)
        assert memory_has(keeper, VALUE.encode())  # or the look sees nothing
        saved = box.snapshot("saved")
        assert files_with(state, VALUE.encode()) == []
        assert VALUE.encode() not in pcap.read_bytes()
        assert VALUE not in str(box.get_info())

        # Another value, from the next request on.
        box.secrets.set("API_KEY", NEXT_VALUE)
        fetch(box, "/echo")
        assert server.seen.headers("x-api-key") == [VALUE, NEXT_VALUE]
        assert [one.has_value for one in box.secrets.list()] == [True]

        # A copy has the values; what its programs trusted, they trust.
        (copy,) = box.fork()
        assert not isinstance(copy, Exception), copy
        with copy:
            assert fetch(copy, "/echo")[0] == "200"
        assert server.seen.headers("x-api-key")[2:] == [NEXT_VALUE]
    with Sandbox.create(snapshot=saved, secrets=[secret], state_folder=str(state)) as again:
        assert fetch(again, "/echo")[0] == "200"
        assert server.seen.headers("x-api-key")[3:] == [VALUE]
