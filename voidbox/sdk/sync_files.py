"""Files of a sandbox, blocking; see files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, overload

from voidbox.sandbox.transfer.telling import Progress
from voidbox.sandbox.transfer.transfer import TransferResult
from voidbox.sdk.facade import Facade, blocking
from voidbox.sdk.files import AsyncFiles, Path
from voidbox.sdk.loop_thread import run, run_telling
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

    def read(
        self,
        path: str,
        format: Literal["text", "bytes"] = "text",
        *,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> str | bytes:
        """Return what is in a file; see AsyncFiles.read()."""
        if format == "bytes":
            return run(self._core.read(path, format, user=user, request_timeout=request_timeout))
        return run(self._core.read(path, format, user=user, request_timeout=request_timeout))

    def watch_dir(
        self,
        path: str = ".",
        *,
        recursive: bool = False,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> Watch:
        """Watch a folder; see AsyncFiles.watch_dir()."""
        core = run(
            self._core.watch_dir(
                path, recursive=recursive, user=user, request_timeout=request_timeout
            )
        )
        return Watch(core)

    def upload(
        self,
        source: Path,
        path: str,
        *,
        progress: Progress | None = None,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> TransferResult:
        """Copy from the host; see AsyncFiles.upload(). `progress` is called on this thread."""
        if progress is None:
            return run(self._core.upload(source, path, user=user, request_timeout=request_timeout))
        return run_telling(
            lambda tell: self._core.upload(
                source, path, progress=tell, user=user, request_timeout=request_timeout
            ),
            progress,
        )

    def download(
        self,
        path: str,
        target: Path,
        *,
        progress: Progress | None = None,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> TransferResult:
        """Copy to the host; see AsyncFiles.download(). `progress` is called on this thread."""
        if progress is None:
            return run(
                self._core.download(path, target, user=user, request_timeout=request_timeout)
            )
        return run_telling(
            lambda tell: self._core.download(
                path, target, progress=tell, user=user, request_timeout=request_timeout
            ),
            progress,
        )
