"""The programs that are to work through a guard: each where it is installed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.unit.secrets.conftest import HOST, VALUE, World

pytestmark = pytest.mark.slow  # they are programs of their own, and take their time to start


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"install {program} to see it through a guard"
    )


def run(world: World, *words: str, **envs: str) -> str:
    """Run a program with the variables that a guest's have; return what it wrote."""
    bundle, ca = str(world.bundle), str(world.ca_file)
    home = world.folder / "home"
    home.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "API_KEY": world.placeholder,
        "SSL_CERT_FILE": bundle,
        "CURL_CA_BUNDLE": bundle,
        "REQUESTS_CA_BUNDLE": bundle,
        "PIP_CERT": bundle,
        "GIT_SSL_CAINFO": bundle,
        "NODE_EXTRA_CA_CERTS": ca,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "NPM_CONFIG_USERCONFIG": str(home / ".npmrc"),
        "NPM_CONFIG_GLOBALCONFIG": os.devnull,
        **envs,
    }
    done = subprocess.run(
        words, env=environment, cwd=home, capture_output=True, text=True, timeout=300
    )
    assert not done.returncode, done.stdout + done.stderr
    assert VALUE not in done.stdout + done.stderr
    return done.stdout


@needs("curl")
@pytest.mark.parametrize("kind", ["header", "basic", "query", "upload"])
def test_curl(world: World, kind: str) -> None:
    world.begin()
    words = {
        "header": ["-H", f"Authorization: Bearer {world.placeholder}", f"{world.url}/echo"],
        "basic": ["-u", f"user:{world.placeholder}", f"{world.url}/echo"],
        "query": [f"{world.url}/echo?key={world.placeholder}"],
        "upload": ["-T", str(world.bundle), "-H", f"K: {world.placeholder}", f"{world.url}/echo"],
    }[kind]
    run(world, "curl", "-sS", "--fail", *words)
    asked = world.server.seen.last()
    told = str(asked["headers"]) + asked["target"]
    basic = base64.b64encode(f"user:{VALUE}".encode()).decode()
    assert (basic if kind == "basic" else VALUE) in told
    world.check_no_secret()


@needs("curl")
def test_curl_by_http2(world2: World) -> None:
    world2.begin()
    told = run(
        world2, "curl", "-sS", "--fail", "--http2", "-w", "%{http_version}",
        "-H", f"X-Api-Key: {world2.placeholder}", f"{world2.url}/echo",
    )  # fmt: skip
    assert told.endswith("2")
    assert world2.server.seen.headers("x-api-key") == [VALUE]


def test_requests(world: World) -> None:
    world.begin()
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(world.bundle)
        answer = session.get(f"{world.url}/echo", auth=("user", world.placeholder), timeout=60)
        assert answer.status_code == 200
        assert (
            session.post(f"{world.url}/echo", data=iter([b"a", b"b"]), timeout=60).json()["body"]
            == "ab"
        )
    basic = base64.b64encode(f"user:{VALUE}".encode()).decode()
    assert world.server.seen.headers("authorization")[0] == f"Basic {basic}"


def test_python_s_urllib(world: World) -> None:
    world.begin()
    script = (
        "import os, urllib.request as u;"
        f"r = u.Request('{world.url}/echo', headers={{'x-api-key': os.environ['API_KEY']}});"
        "print(u.urlopen(r).status)"
    )
    assert run(world, sys.executable, "-c", script) == "200\n"
    assert world.server.seen.headers("x-api-key") == [VALUE]


@needs("git")
def test_git(world: World) -> None:
    """Clone and push over HTTPS, with the token as the password."""
    repository = world.folder / "acme.git"
    subprocess.run(["git", "init", "-q", "--bare", repository], check=True)
    subprocess.run(["git", "-C", repository, "config", "http.receivepack", "true"], check=True)
    world.server.extra["acme.git"] = lambda handler: git_backend(handler, world.folder)
    world.begin()
    url = f"https://user:{world.placeholder}@{HOST}:{world.entrance.port}/acme.git"
    run(world, "git", "clone", "-q", url, "work")
    for words in (
        ["checkout", "-q", "-b", "main"],
        ["-c", "user.name=n", "-c", "user.email=e@e", "commit", "-q", "--allow-empty", "-m", "m"],
        ["push", "-q", "origin", "main"],
    ):
        run(world, "git", "-C", "work", *words)
    log = subprocess.run(
        ["git", "-C", repository, "log", "--format=%s", "main"], capture_output=True, text=True
    )
    assert log.stdout == "m\n"
    run(world, "git", "clone", "-q", "-b", "main", url, "again")


def git_backend(handler: Any, root: Path) -> None:
    """Be git's own server behind HTTP, for who knows the token."""
    basic = base64.b64encode(f"user:{VALUE}".encode()).decode()
    body = handler._body()
    if handler.headers.get("authorization") != f"Basic {basic}":
        handler._answer(401, b"", www_authenticate='Basic realm="git"')
        return
    path, _, query = handler.path.partition("?")
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "REMOTE_USER": "user",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REQUEST_METHOD": handler.command,
        "CONTENT_TYPE": handler.headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_CONTENT_ENCODING": handler.headers.get("content-encoding", ""),
        "GIT_PROTOCOL": handler.headers.get("git-protocol", ""),
    }
    done = subprocess.run(["git", "http-backend"], env=environment, input=body, capture_output=True)
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    status = int(lines.pop("Status", "200").split()[0])
    handler._answer(status, content, **{name.replace("-", "_"): v for name, v in lines.items()})


def make_wheel() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("acme_thing.py", "answer = 42\n")
        info = "acme_thing-1.0.dist-info"
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: acme-thing\nVersion: 1.0\n")
        tag = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{info}/WHEEL", tag)
        file.writestr(f"{info}/RECORD", "")
    return content.getvalue()


def test_pip(world: World) -> None:
    wheel, name = make_wheel(), "acme_thing-1.0-py3-none-any.whl"
    basic = base64.b64encode(f"user:{VALUE}".encode()).decode()

    def index(handler: Any) -> None:
        if handler.headers.get("authorization") != f"Basic {basic}":
            handler._answer(401, b"", www_authenticate='Basic realm="index"')
        elif handler.path.endswith(".whl"):
            handler._answer(200, wheel)
        else:
            page = f'<!DOCTYPE html><a href="/simple/{name}">{name}</a>'
            handler._answer(200, page.encode(), content_type="text/html")

    world.server.extra["simple"] = index
    world.begin()
    url = f"https://user:{world.placeholder}@{HOST}:{world.entrance.port}/simple/"
    run(
        world, sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check",
        "--no-cache-dir", "--target", "packages", "--index-url", url, "acme-thing",
    )  # fmt: skip
    assert (world.folder / "home/packages/acme_thing.py").exists()


@needs("npm")
def test_npm(world: World) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as file:
        text = json.dumps({"name": "@acme/thing", "version": "1.0.0"}).encode()
        member = tarfile.TarInfo("package/package.json")
        member.size = len(text)
        file.addfile(member, io.BytesIO(text))
    package = content.getvalue()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()

    def registry(handler: Any) -> None:
        if handler.headers.get("authorization") != f"Bearer {VALUE}":
            handler._answer(401, b"{}")
        elif handler.path.endswith(".tgz"):
            handler._answer(200, package)
        else:
            dist = {"tarball": f"{world.url}/registry/thing.tgz", "integrity": integrity}
            version = {"name": "@acme/thing", "version": "1.0.0", "dist": dist}
            told = {"name": "@acme/thing", "dist-tags": {"latest": "1.0.0"},
                    "versions": {"1.0.0": version}}  # fmt: skip
            handler._answer(200, json.dumps(told).encode(), content_type="application/json")

    world.server.extra["registry"] = registry
    world.begin()
    (world.folder / "home").mkdir()
    (world.folder / "home/.npmrc").write_text(
        f"@acme:registry={world.url}/registry/\n"
        f"//{HOST}:{world.entrance.port}/registry/:_authToken={world.placeholder}\n"
        "update-notifier=false\naudit=false\nfund=false\n"
    )
    run(world, "npm", "install", "--no-save", "@acme/thing")
    assert (world.folder / "home/node_modules/@acme/thing/package.json").exists()


@needs("node")
def test_node_s_fetch(world: World) -> None:
    world.begin()
    script = (
        f"fetch('{world.url}/echo', {{method: 'POST', body: 'b',"
        " headers: {authorization: 'Bearer ' + process.env.API_KEY}})"
        ".then(async r => console.log(r.status, (await r.json()).body))"
    )
    assert run(world, "node", "-e", script) == "200 b\n"
    assert world.server.seen.headers("authorization") == [f"Bearer {VALUE}"]


@needs("openssl")
def test_openssl_finds_the_certificate_by_its_hash(world: World) -> None:
    from voidbox.secrets.authority import subject_hash

    done = subprocess.run(
        ["openssl", "x509", "-noout", "-hash", "-in", world.ca_file], capture_output=True, text=True
    )
    assert done.stdout.strip() == subject_hash(world.authority.certificate)
