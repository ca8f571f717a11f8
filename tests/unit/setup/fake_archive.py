"""A Debian archive on loopback, signed by a key of the tests' and small."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tarfile
import time
from collections.abc import Mapping
from email.utils import formatdate
from urllib.parse import unquote

from tests.unit.images.fake_registry import FakeRegistry, Handler, Request
from tests.unit.setup.signer import Signer


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def ar(members: Mapping[str, bytes]) -> bytes:
    """An ar archive."""
    made = b"!<arch>\n"
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        made += header.encode() + content + b"\n" * (len(content) % 2)
    return made


def tar(files: Mapping[str, bytes | str | None], mtime: int = 1_700_000_000) -> bytes:
    """A tar archive: bytes are a file, a text where a link leads, None a folder."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(f"./{path}")
            info.mtime = mtime
            info.mode = 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return stream.getvalue()


def make_deb(
    files: Mapping[str, bytes | str | None], control: Mapping[str, bytes] | None = None,
    kind: str = "xz",
) -> bytes:  # fmt: skip
    """A package's file."""
    pack = {"xz": lzma.compress, "gz": gzip.compress, "": lambda data: data}[kind]
    suffix = f".{kind}" if kind else ""
    return ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.gz": gzip.compress(tar(control or {"control": b"Package: x\n"})),
            f"data.tar{suffix}": pack(tar(files)),
        }
    )


class FakeArchive(FakeRegistry):
    """A mirror. Packages are added, then `publish` makes and signs the lists.

    Attributes:
        files: by path below the server's root.
        uri: of the archive.
    """

    def __init__(self, signer: Signer = Signer()) -> None:  # noqa: B008  # it is a tuple
        super().__init__()
        self.signer = signer
        self.files: dict[str, bytes] = {}
        self.stanzas: list[str] = []
        self.uri = f"http://{self.address}/debian"

    def add_package(
        self, name: str, version: str = "1.0", deb: bytes | None = None, **fields: str
    ) -> bytes:
        """Have a package there; fields as in control, _ for -."""
        content = make_deb({f"usr/share/{name}": name.encode()}) if deb is None else deb
        path = f"pool/main/{name}_{version.partition(':')[2] or version}_amd64.deb"
        self.files[f"debian/{path}"] = content
        lines = {
            "Package": name, "Version": version, "Architecture": "amd64", "Filename": path,
            "Size": str(len(content)), "SHA256": sha256(content),
            **{key.replace("_", "-"): value for key, value in fields.items()},
        }  # fmt: skip
        self.stanzas.append("".join(f"{key}: {value}\n" for key, value in lines.items()))
        return content

    def publish(
        self,
        suite: str = "bookworm",
        *,
        codename: str | None = None,
        date_s: float | None = None,
        until_s: float | None = None,
        by_hash: bool = True,
        root: str = "debian",
        signer: Signer | None = None,
        stanzas: list[str] | None = None,
    ) -> None:
        """Make a suite's lists of what was added."""
        content = "\n".join(self.stanzas if stanzas is None else stanzas).encode()
        path = "main/binary-amd64/Packages"
        kinds = {path: content, f"{path}.xz": lzma.compress(content)}
        folder = f"{root}/dists/{suite}"
        lines = []
        for name, data in kinds.items():
            lines.append(f" {sha256(data)} {len(data):16} {name}\n")
            if name.endswith(".xz"):
                self.files[f"{folder}/{name}"] = data
                by_hash_path = f"{folder}/main/binary-amd64/by-hash/SHA256/{sha256(data)}"
                self.files[by_hash_path] = data
        date_s = time.time() - 3600 if date_s is None else date_s
        until = "" if until_s is None else f"Valid-Until: {formatdate(until_s, usegmt=True)}\n"
        release = (
            f"Origin: Debian\nCodename: {codename or suite}\n"
            f"Date: {formatdate(date_s, usegmt=True)}\n{until}"
            f"Acquire-By-Hash: {'yes' if by_hash else 'no'}\nMD5Sum:\n 00 1 x\n"
            f"SHA256:\n{''.join(lines)}"
        )
        made_by = signer or self.signer
        self.files[f"{folder}/InRelease"] = made_by.clearsign(release)

    def answer(self, handler: Handler, request: Request) -> None:
        content = self.files.get(unquote(request.path).lstrip("/"))
        if content is None:
            handler.reply(404, b"<html>not here</html>")
        else:
            self.answer_blob(handler, request, content)
