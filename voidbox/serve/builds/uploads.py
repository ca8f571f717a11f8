"""Archives for COPY: sent once, by a URL that is signed, and kept a while for the next build."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from voidbox.serve.errors import ApiError, bad
from voidbox.serve.keys import Key

_FOLDER = "serve-uploads"
_BYTES_MAX = 4 << 30  # of one archive
_ALL_BYTES_MAX = 16 << 30
_SIGNED_S = 2 * 3600.0  # SDKs give up after one
_KEPT_S = 24 * 3600.0


class Uploads:
    """The archives of all keys: each sees its own.

    Args:
        folder: the state folder.
        secret: the server's, for signatures.
    """

    def __init__(self, folder: str, secret: bytes) -> None:
        self._folder = os.path.join(folder, _FOLDER)
        self._secret = secret

    def signature(self, key_id: str, files_hash: str) -> str:
        """Return what allows an archive to be sent, for a while."""
        return self._sign(key_id, files_hash, str(int(time.time() + _SIGNED_S)))

    def _sign(self, key_id: str, files_hash: str, end_at: str) -> str:
        text = f"upload:{key_id}:{files_hash}:{end_at}".encode()
        return f"{key_id}.{end_at}.{hmac.new(self._secret, text, hashlib.sha256).hexdigest()}"

    def signer(self, signature: str, files_hash: str) -> str:
        """Return the ID of the key that a signature was made for.

        Raises:
            ApiError: it is wrong, or too old.
        """
        key_id, _, rest = signature.partition(".")
        end_at = rest.partition(".")[0]
        wanted = self._sign(key_id, files_hash, end_at)
        if not hmac.compare_digest(signature.encode("utf-8", "replace"), wanted.encode()):
            raise ApiError(403, "the signature is wrong")
        if time.time() > int(end_at):
            raise ApiError(403, "the signature is too old: ask for another URL")
        return key_id

    def path(self, key: Key, files_hash: str) -> str | None:
        """Return an archive's file; None if it was not sent, or is gone."""
        path = self._path(key.id, files_hash)
        with suppress(OSError):
            os.utime(path)  # it is used: it stays
            return path
        return None

    def _path(self, key_id: str, files_hash: str) -> str:
        return os.path.join(self._folder, f"{key_id}-{files_hash}")

    async def take(self, key_id: str, files_hash: str, body: AsyncIterator[bytes]) -> None:
        """Keep an archive as it comes.

        Raises:
            ApiError: it is too large, or the disk is full.
        """
        await asyncio.to_thread(self._sweep)
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".part-") as file:
                size = 0
                async for piece in body:
                    size += len(piece)
                    if size > _BYTES_MAX:
                        raise ApiError(413, f"an archive of more than {_BYTES_MAX} bytes")
                    await asyncio.to_thread(file.write, piece)
                file.flush()
                if not size:
                    raise bad("an empty archive")
                path = self._path(key_id, files_hash)
                with suppress(FileNotFoundError):
                    os.unlink(path)
                os.link(file.name, path)
        except OSError as error:
            raise ApiError(507, f"the archive cannot be kept: {error.strerror}") from error

    def _sweep(self) -> None:
        """Remove what nobody has used for long, and the oldest where there is too much."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        found = []
        for entry in os.scandir(self._folder):
            with suppress(OSError):
                status = entry.stat()
                found.append((status.st_mtime, status.st_size, entry.path))
        total, now = sum(size for _, size, _ in found), time.time()
        for used_at, size, path in sorted(found):
            if now - used_at > _KEPT_S or total > _ALL_BYTES_MAX:
                with suppress(OSError):
                    os.unlink(path)
                total -= size
