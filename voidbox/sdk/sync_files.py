"""Files of a sandbox, blocking; see files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, overload

from voidbox.sdk.facade import Facade, blocking, blocking_as, documented_by, telling
from voidbox.sdk.files import AsyncFiles
from voidbox.sdk.loop_thread import run
from voidbox.sdk.watch import AsyncWatch, FileEvent


class Watch(Facade[AsyncWatch]):
    """What happens in a folder: iterate over it, until close() or the folder's end."""

    next = blocking(AsyncWatch.next)
    close = blocking(AsyncWatch.close)

    def __iter__(self) -> Iterator[FileEvent]:
        while (event := self.next()) is not None:
            yield event

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Files(Facade[AsyncFiles]):
    """Reads, writes, copies and watches files of a sandbox; see AsyncFiles."""

    read_part = blocking(AsyncFiles.read_part)
    write = blocking(AsyncFiles.write)
    list = blocking(AsyncFiles.list)
    stat = blocking(AsyncFiles.stat)
    exists = blocking(AsyncFiles.exists)
    make_dir = blocking(AsyncFiles.make_dir)
    remove = blocking(AsyncFiles.remove)
    rename = blocking(AsyncFiles.rename)

    @overload
    def read(
        self,
        path: str,
        format: Literal["text"] = "text",
        *,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> str: ...

    @overload
    def read(
        self,
        path: str,
        format: Literal["bytes"],
        *,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> bytes: ...

    @documented_by(AsyncFiles.read)
    def read(
        self,
        path: str,
        format: Literal["text", "bytes"] = "text",
        *,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> str | bytes:
        if format == "bytes":
            return run(self._core.read(path, format, user=user, request_timeout=request_timeout))
        return run(self._core.read(path, format, user=user, request_timeout=request_timeout))

    watch_dir = blocking_as(Watch, AsyncFiles.watch_dir)
    upload = telling(AsyncFiles.upload)
    download = telling(AsyncFiles.download)
