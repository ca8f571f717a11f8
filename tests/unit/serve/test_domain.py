"""Domain mode: E2B's SDKs with E2B_DOMAIN alone, over TLS, each sandbox and port by a name.

All of it in a network namespace with a name server that knows every name of the domain.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serve.conftest import DEADLINE_S, ROOT, StandIn
from tests.unit.serve.sdk_versions import with_package
from tests.unit.serve.test_sdks import _AS_USER, HERE

pytestmark = pytest.mark.slow

_PORT, _LIMIT_S = 8443, 900
_DOMAIN = f"sb.test:{_PORT}"
_INSIDE = 'ip link set lo up; mount --bind "$RESOLV" /etc/resolv.conf; exec "$@"'
_ISOLATE = ("unshare", "--net", "--mount", *_AS_USER, "sh", "-ec", _INSIDE, "sh")


class Domain(StandIn):
    """A server of a domain, with its name server."""

    def start(self) -> None:
        self.port = _PORT
        super().start()
        self.names = subprocess.Popen(
            [*self._enter(), sys.executable, "-m", "tests.unit.serve.names"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.names.stdout is not None
        assert self.names.stdout.readline() == "ready\n"

    def close(self) -> None:
        self.names.kill()
        self.names.wait(DEADLINE_S)
        assert self.names.stdout is not None
        self.names.stdout.close()
        super().close()

    def _enter(self) -> tuple[str, ...]:
        as_user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return ("nsenter", "--target", str(self.process.pid), "--net", "--mount", *as_user)

    def run(self, command: list[str], certificate: Path, **more: str) -> dict[str, str]:
        """Run checks inside, that know the domain and nothing else."""
        own = {"E2B_API_KEY": self.key, "E2B_DOMAIN": _DOMAIN}
        trust = {"SSL_CERT_FILE": str(certificate), "NODE_EXTRA_CA_CERTS": str(certificate)}
        base = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        done = subprocess.run(
            [*self._enter(), *command],
            env={**base, **own, **trust, **more},
            capture_output=True, text=True, timeout=_LIMIT_S, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-5000:]
        found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
        return found


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate of the domain, which is its own authority, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = "subjectAltName=DNS:sb.test,DNS:*.sb.test"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=sb.test", "-addext", names]
    command += ["-addext", "basicConstraints=critical,CA:FALSE"]  # rustls wants that of a server
    subprocess.run(
        [*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    return certificate, key


@pytest.fixture(scope="module")
def certificate() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        yield make_certificate(Path(folder))


@pytest.fixture(scope="module")
def server(certificate: tuple[Path, Path]) -> Iterator[Domain]:
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        resolv = Path(folder, "resolv.conf")
        resolv.write_text("nameserver 127.0.0.1\n")
        os.environ["RESOLV"] = str(resolv)
        if subprocess.run([*_ISOLATE, "true"], capture_output=True).returncode:
            pytest.skip("this user can make no namespaces; see unshare(1)")
        settings = {
            "domain": _DOMAIN,
            "tls_cert": str(certificate[0]),
            "tls_key": str(certificate[1]),
        }
        server = Domain(Path(folder), settings, _ISOLATE)
        try:
            yield server
        finally:
            server.close()


def check_all(found: dict[str, str], server: Domain) -> None:
    wrong = {name: why for name, why in found.items() if why}
    assert found and not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())
    assert "Traceback" not in server.log.read_text()


def test_python(server: Domain, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    python = with_package("python", "e2b")[-1].program
    if not python.exists():
        pytest.skip("make sdks fetches E2B's SDKs")
    command = [str(python), str(HERE / "checks.py"), str(tmp_path)]
    check_all(server.run(command, certificate[0]), server)


def test_javascript(server: Domain, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    folder = with_package("javascript", "e2b")[-1].folder
    if not (folder / "node_modules").exists():
        pytest.skip("make sdks fetches E2B's SDKs, where there is npm")
    command = ["node", str(HERE / "checks.mjs"), str(tmp_path)]
    check_all(server.run(command, certificate[0], SDK_FOLDER=str(folder)), server)


def test_a_port_by_its_name(server: Domain, certificate: tuple[Path, Path]) -> None:
    """What get_host() gives is where the guest's server is; and our own SDK takes the domain."""
    script = f"""
import json, ssl, threading, urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from voidbox import Sandbox

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"here")

web = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=web.serve_forever, daemon=True).start()
with Sandbox.create(remote="https://api.{_DOMAIN}") as sandbox:
    told = sandbox.commands.run("echo on").stdout
    url = f"https://{{web.server_port}}-{{sandbox.sandbox_id}}.{_DOMAIN}/"
    print(json.dumps({{"told": told, "page": urllib.request.urlopen(url).read().decode()}}))
"""
    command = [sys.executable, "-c", script]
    found = server.run(command, certificate[0], VOIDBOX_API_KEY=server.key, PYTHONPATH=str(ROOT))
    assert found == {"told": "on\n", "page": "here"}


def test_the_servers_log_shows_no_fault(server: Domain) -> None:
    assert "Traceback" not in server.log.read_text()
