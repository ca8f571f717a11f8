"""The host's side: the guest's changes are put in their places, and nothing of the host's is lost.

What the guest changed has been fetched into a folder beside, on the same file system, so that each
file gets its place by a rename. Before that its place is looked at: what is not as it was when it
was copied in was changed on the host meanwhile, and stays; the guest's version is put beside it, as
NAME.voidbox-conflict. Every folder on the way is opened below the one before, never through a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from voidbox.agent.core import printable
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.transfer.host_tree import is_safe_link, umask
from voidbox.sandbox.workspace.changes import Changes
from voidbox.sandbox.workspace.manifest import (
    FILE,
    FOLDER,
    LINK,
    GuestItem,
    HostItem,
    Manifest,
    Parts,
    look,
)

CONFLICT_SUFFIX = ".voidbox-conflict"
_CONFLICTS_MAX = 1000
_NAME_BYTES_MAX = 255
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Outcome(NamedTuple):
    """What became of the changes: paths relative to the folder, fit to be printed.

    Attributes:
        conflicts: "path: what was done".
        failed: what the host refused, each with "path: why not".
    """

    added: list[str]
    changed: list[str]
    deleted: list[str]
    conflicts: list[str]
    failed: dict[Parts, str]


class Merge:
    """One merge. Thread: any, one.

    Args:
        root_fd: the host's folder; the caller's.
        staging_fd: the folder in it that holds what was fetched, by the same names; the caller's.
        base: both sides as they were; `host` is brought up to date.
        now: the guest's side.
    """

    def __init__(
        self, root_fd: int, staging_fd: int, base: Manifest, now: dict[Parts, GuestItem]
    ) -> None:
        self._root_fd = root_fd
        self._staging_fd = staging_fd
        self._umask = umask()
        self._base = base
        self._now = now
        self._moved: dict[Parts, Parts] = {}  # folders whose place was taken
        self.outcome = Outcome([], [], [], [], {})

    def apply(self, changes: Changes) -> None:
        """Bring the changes to the host."""
        for parts in changes.deleted:
            with self._reports(parts):
                self._delete(parts)
        for parts in changes.folders:
            with self._reports(parts):
                self._put_folder(parts)
        for parts in changes.files:
            with self._reports(parts):
                self._put_file(parts)
        for parts in changes.links:
            with self._reports(parts):
                self._put_link(parts)

    @contextlib.contextmanager
    def _reports(self, parts: Parts) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror
            if isinstance(error, NotADirectoryError):
                reason = "something on the way is a link or a file on the host"
            self.outcome.failed[parts] = f"{_shown(parts)}: {reason}"

    @contextlib.contextmanager
    def _folder(self, parts: Parts, makes: bool = False, root_fd: int = -1) -> Iterator[int]:
        """Open a folder of the host.

        Raises:
            OSError: it is not there, or something on the way is a link.
        """
        fd = os.dup(self._root_fd if root_fd < 0 else root_fd)
        try:
            for part in parts:
                if makes:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=fd)
                inner = os.open(part, _FOLDER_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _place(self, parts: Parts) -> Parts:
        """Return where something goes, if a folder above had to go elsewhere."""
        for depth in range(len(parts) - 1, 0, -1):
            moved = self._moved.get(parts[:depth])
            if moved is not None:
                return (*moved, *parts[depth:])
        return parts

    @contextlib.contextmanager
    def _parent(self, parts: Parts) -> Iterator[tuple[int, Parts]]:
        """Open the folder that something goes into; gives its descriptor and the whole place."""
        with contextlib.ExitStack() as stack:
            place = self._place(parts)
            try:
                fd = stack.enter_context(self._folder(place[:-1], makes=True))
            except NotADirectoryError:
                self._make_way(parts)
                place = self._place(parts)
                fd = stack.enter_context(self._folder(place[:-1], makes=True))
            yield fd, place

    def _make_way(self, parts: Parts) -> None:
        """Make folders beside those whose names files of the host have now."""
        for depth in range(1, len(parts)):
            place = self._place(parts[:depth])
            with self._folder(place[:-1], makes=True) as fd:
                status = look_kind(fd, place[-1])
                if status is not None and stat.S_ISREG(status.st_mode):
                    name = _free_name(fd, place[-1])
                    os.mkdir(name, dir_fd=fd)
                    self._moved[parts[:depth]] = (*place[:-1], name)
                    what = f"a folder in the sandbox, a file here: put into {_shown((name,))}"
                    self._conflict(parts[:depth], what)

    def _copied(self, parts: Parts) -> HostItem | None:
        """Return what the host had, if that was copied in: a FIFO, say, was not."""
        base, guest = self._base.host.get(parts), self._base.guest.get(parts)
        return base if base is not None and guest is not None and base.kind == guest.kind else None

    # Deleting.

    def _delete(self, parts: Parts) -> None:
        base, now = self._copied(parts), self._now.get(parts)
        if base is None:
            return  # it was never here
        if now is not None and FOLDER not in (base.kind, now.kind):
            return  # what is there instead replaces it, once it is known to be there
        if base.kind == LINK and not is_safe_link(parts, base.target):
            self._conflict(parts, "deleted in the sandbox: a link that cannot come back: kept")
            return
        try:
            with self._folder(parts[:-1]) as fd:
                item = look(fd, parts[-1])
                if item is None:
                    self._base.host.pop(parts)
                    return
                if not _is_same(base, item):
                    self._conflict(parts, "deleted in the sandbox, changed here: kept")
                    return
                if item.kind == FOLDER:
                    os.rmdir(parts[-1], dir_fd=fd)
                else:
                    os.unlink(parts[-1], dir_fd=fd)
        except FileNotFoundError:
            self._base.host.pop(parts)
            return
        except OSError as error:
            has_failed = any(failed[: len(parts)] == parts for failed in self.outcome.failed)
            if base.kind != FOLDER or error.errno != errno.ENOTEMPTY or has_failed:
                raise
            self._base.host.pop(parts)
            self._conflict(parts, "deleted in the sandbox, not empty here: kept")
            return
        self._base.host.pop(parts)
        if now is None:
            self.outcome.deleted.append(_shown(parts))

    def _conflict(self, parts: Parts, what: str) -> None:
        self.outcome.conflicts.append(f"{_shown(parts)}: {what}")

    # Putting.

    def _put_folder(self, parts: Parts) -> None:
        mode = self._now[parts].mode | 0o700  # what else is new has to go into it
        with self._parent(parts) as (fd, place):
            item = look(fd, place[-1])
            if item is None:
                os.mkdir(place[-1], mode, dir_fd=fd)
                self._done(parts, None, HostItem(FOLDER, mode, 0, 0))
            elif item.kind == FOLDER:
                base = self._base.host.get(parts)
                if base is not None and base.mode == item.mode != mode:
                    with self._folder((place[-1],), root_fd=fd) as inner:
                        os.fchmod(inner, mode)
                    self._done(parts, base, HostItem(FOLDER, mode, 0, 0))
                else:
                    self._base.host[parts] = item
            else:
                name = _free_name(fd, place[-1])
                os.mkdir(name, mode, dir_fd=fd)
                self._moved[parts] = (*place[:-1], name)
                self._conflict(parts, f"a folder in the sandbox: put into {_shown((name,))}")

    def _done(self, parts: Parts, base: HostItem | None, item: HostItem) -> None:
        was_here = base is not None or parts in self._base.guest
        (self.outcome.changed if was_here else self.outcome.added).append(_shown(parts))
        self._base.host[parts] = item

    def _put_file(self, parts: Parts) -> None:
        with self._folder(parts[:-1], root_fd=self._staging_fd) as staged_fd:
            fetched = look(staged_fd, parts[-1])
            if fetched is None or fetched.kind != FILE:
                raise FileNotFoundError(errno.ENOENT, "what was fetched is not there any more")
            self._put(parts, fetched, staged_fd)

    def _put_link(self, parts: Parts) -> None:
        made = HostItem(LINK, 0o777, 0, 0, "", self._now[parts].target)
        with self._folder(parts[:-1], makes=True, root_fd=self._staging_fd) as staged_fd:
            os.symlink(made.target, parts[-1], dir_fd=staged_fd)
            self._put(parts, made, staged_fd)

    def _put(self, parts: Parts, new: HostItem, staged_fd: int) -> None:
        """Give what was fetched its place, or one beside."""
        with self._parent(parts) as (fd, place):
            base = self._copied(parts) if place == parts else None
            item = look(fd, place[-1])
            mode = self._mode(parts, base, item)
            if item is not None and _content(item) == _content(new):
                if new.kind == FILE and item.mode != mode:
                    _set_mode(fd, place[-1], mode)
                    self._done(parts, base, item._replace(mode=mode))
                else:
                    self._base.host[parts] = item
                return
            if base is not None and _content(base) == _content(new):
                self._put_mode(parts, base, item, fd, place[-1])
                return
            name = place[-1]
            is_conflict = not _is_same(base, item)
            if is_conflict:
                name = _free_name(fd, name)
            if new.kind == FILE:
                # Or a crash of the host may leave neither the old nor the new one.
                _set_mode(staged_fd, parts[-1], mode, syncs=item is not None)
            os.rename(parts[-1], name, src_dir_fd=staged_fd, dst_dir_fd=fd)
            if not is_conflict:
                self._done(parts, base, new._replace(mode=mode))
            elif item is None:
                self._conflict(parts, f"changed in the sandbox, deleted here: {_shown((name,))}")
            else:
                self._conflict(parts, f"changed on both sides: the sandbox's is {_shown((name,))}")

    def _put_mode(
        self, parts: Parts, base: HostItem, item: HostItem | None, fd: int, name: str
    ) -> None:
        """The guest changed no more than permissions; the host, the contents perhaps."""
        mode, was = self._now[parts].mode | 0o400, self._base.guest.get(parts)
        if item is None or item.kind != FILE or was is None or was.mode == self._now[parts].mode:
            return
        if item.mode == base.mode != mode:
            _set_mode(fd, name, mode)
            self._done(parts, base, base._replace(mode=mode))

    def _mode(self, parts: Parts, base: HostItem | None, item: HostItem | None) -> int:
        """Return a file's permissions: the guest's if it alone changed them, else the host's.

        Its owner may read it: else it could not be looked at the next time.
        """
        now, was = self._now[parts].mode | 0o400, self._base.guest.get(parts)
        if item is None or item.kind != FILE:
            return now & ~self._umask
        if (
            base is None
            or was is None
            or was.mode == self._now[parts].mode
            or item.mode != base.mode
        ):
            return item.mode
        return now


def _content(item: HostItem) -> tuple[str, str, str]:
    return item.kind, item.digest, item.target


def _is_same(base: HostItem | None, item: HostItem | None) -> bool:
    """Whether the host has something as it was copied in."""
    if base is None or item is None:
        return base is item
    return _content(base) == _content(item)


def _set_mode(folder_fd: int, name: str, mode: int, syncs: bool = False) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=folder_fd)
    try:
        os.fchmod(fd, mode & 0o777)
        if syncs:
            os.fsync(fd)
    finally:
        os.close(fd)


def _free_name(folder_fd: int, name: str) -> str:
    """Return a name beside another that nothing has yet.

    Raises:
        OSError: there are too many.
    """
    for number in range(1, _CONFLICTS_MAX):
        suffix = CONFLICT_SUFFIX if number == 1 else f"{CONFLICT_SUFFIX}-{number}"
        start = os.fsencode(name)[: _NAME_BYTES_MAX - len(suffix)]
        found = os.fsdecode(start) + suffix
        if look_kind(folder_fd, found) is None:
            return found
    raise FileExistsError(errno.EEXIST, "too many conflicts of this name")


def look_kind(folder_fd: int, name: str) -> os.stat_result | None:
    """Return what stat(2) says of a name itself; None if there is nothing."""
    try:
        return os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _shown(parts: Parts) -> str:
    return printable("/".join(parts))
