"""Whom commands run as and files belong to.

/etc/passwd and /etc/group are read here, not by the C library: its own lookups may load whatever
modules the root's /etc/nsswitch.conf names, and the root may be an image made for another library.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import os

from guest_agent import plain_files, syscalls
from guest_agent.connection import RequestError
from guest_agent.protocol import BAD_REQUEST
from guest_agent.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

PASSWD, GROUP = "/etc/passwd", "/etc/group"
_FILE_BYTES_MAX = 4 << 20

_KNOWN_MAX = 64

_default = ["sandbox"]  # who commands run as that name nobody


class User(NamedTuple):
    """One user with the groups that it belongs to."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


class _Known:
    """Users that were looked up, while the tables stay as they are: each request has one."""

    def __init__(self) -> None:
        self.marks: tuple[tuple[int, ...], ...] = ()
        self.users: dict[str, User] = {}


_known = _Known()


def default() -> str:
    """Return the user of requests that name none."""
    return _default[0]


def set_default(spec: str) -> None:
    """Have requests that name no user mean this one; see find()."""
    _default[0] = spec


def find(spec: str) -> User:
    """Return the user called `spec`: NAME or UID, and :NAME or :GID if it is not its own group.

    A number needs no entry, and is then of group 0; nor does "root", since an image may have no
    /etc/passwd at all. ":GROUP" is root's. All of this is docker's reading.

    Raises:
        RequestError: there is no such user, or no such group.
    """
    marks = _mark(PASSWD), _mark(GROUP)
    if marks != _known.marks or len(_known.users) >= _KNOWN_MAX:
        _known.marks = marks
        _known.users.clear()
    user = _known.users.get(spec)
    if user is None:
        user = _known.users[spec] = _read(spec)
    return user


def _mark(path: str) -> tuple[int, ...]:
    """Return what changes with a file, whoever changes it."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(spec: str) -> User:
    name, _, group = spec.partition(":")
    if not name and not group:
        raise RequestError(BAD_REQUEST, f"no user {spec[:80]!r}: give a name, a uid, or uid:gid")
    user = _find_user(name or "0", spec)
    if not group:
        return user
    gid = _find_group(group, spec)
    return user._replace(gid=gid, groups=(gid,))


def _find_user(word: str, spec: str) -> User:
    for name, _, uid, gid, _, home, shell in _entries(PASSWD, 7):
        if word in (name, uid) and _is_id(uid) and _is_id(gid):
            groups = dict.fromkeys((int(gid), *_groups_of(name)))
            shown = name.encode("utf-8", "replace").decode()
            return User(shown, int(uid), int(gid), tuple(groups), home or "/", shell or "/bin/sh")
    if word in ("root", "0"):
        home = "/root" if os.path.isdir("/root") else "/"
        return User("root", 0, 0, (0,), home, "/bin/sh")
    if not word.isdecimal():
        raise RequestError(BAD_REQUEST, f"no user {spec[:80]!r} in the guest")
    uid = _id(word, spec)
    return User(word, uid, 0, (0,), "/", "/bin/sh")


def _find_group(word: str, spec: str) -> int:
    if word.isdecimal():
        return _id(word, spec)
    for name, _, gid, _ in _entries(GROUP, 4):
        if word == name and _is_id(gid):
            return int(gid)
    raise RequestError(BAD_REQUEST, f"no user {spec[:80]!r} in the guest: it has no such group")


def _groups_of(name: str) -> list[int]:
    return [
        int(gid)
        for _, _, gid, members in _entries(GROUP, 4)
        if name in members.split(",") and _is_id(gid)
    ]


def _entries(path: str, fields: int) -> Iterator[list[str]]:
    """Yield the lines of a table; passwd(5), group(5). A root without one has no entries.

    Fields that are missing at a line's end are empty: images are made by hand, too.
    """
    try:
        text = plain_files.read(path, _FILE_BYTES_MAX).decode("utf-8", "surrogateescape")
    except OSError:
        return
    for line in text.split("\n"):  # not splitlines(): a name may hold what Unicode ends lines with
        words = line.split(":")[:fields]
        yield [*words, *[""] * (fields - len(words))]


def _id(text: str, spec: str) -> int:
    if not _is_id(text):
        raise RequestError(BAD_REQUEST, f"no user {spec[:80]!r}: give a name, a uid, or uid:gid")
    return int(text)


def _is_id(text: str) -> bool:
    # The last 32-bit number is -1, which means "leave it" to the system calls.
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < 0xFFFFFFFF


@contextlib.contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Have the file system see this thread as `user` for a moment.

    Without this, a symbolic link that the user's programs put somewhere would lead the agent to
    files that are none of theirs.
    """
    if os.geteuid() != 0 or user.uid == 0:
        yield
        return
    groups = tuple(os.getgroups())
    try:
        syscalls.set_groups(user.groups)
        syscalls.set_gids(-1, user.gid, -1)
        syscalls.set_uids(-1, user.uid, -1)
        yield
    finally:
        syscalls.set_uids(-1, 0, -1)
        syscalls.set_gids(-1, 0, -1)
        syscalls.set_groups(groups)


def call_as(user: User, function: Callable[[], T]) -> T:
    """Call a function on a thread of its own that is `user` for good; return what it returns.

    To the kernel credentials are a thread's own, and a child has those of the thread that made it.
    This thread stays root meanwhile, so that kill(2) of the user's is refused as ever.

    Raises:
        OSError: it cannot be that user, or cannot be a thread; or what `function` raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    ended = _thread.allocate_lock()
    ended.acquire()

    def run() -> None:
        try:
            syscalls.set_groups(user.groups)
            syscalls.set_gids(user.gid, user.gid, user.gid)
            syscalls.set_uids(user.uid, user.uid, user.uid)
            results.append(function())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.release()

    try:
        _thread.start_new_thread(run, ())
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
    ended.acquire()
    if errors:
        raise errors[0]
    return results[0]
