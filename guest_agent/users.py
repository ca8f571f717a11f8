"""Whom commands run as and files belong to."""

from __future__ import annotations

import contextlib
import os
import pwd
from typing import NamedTuple

from guest_agent.connection import RequestError
from guest_agent.protocol import BAD_REQUEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_USER = "sandbox"


class User(NamedTuple):
    """One user with the groups that it belongs to."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


def find(spec: str) -> User:
    """Return the user called `spec`: a name, a uid, or uid:gid.

    Raises:
        RequestError: there is no such user.
    """
    uid, colon, gid = spec.partition(":")
    if (colon and not _is_id(gid)) or (uid.isdecimal() and not _is_id(uid)):
        raise RequestError(BAD_REQUEST, f"no user {spec[:80]!r}: give a name, a uid, or uid:gid")
    try:
        entry = pwd.getpwuid(int(uid)) if uid.isdecimal() else pwd.getpwnam(uid)
    except KeyError:
        entry = None
    if entry is not None:
        group = int(gid) if colon else entry.pw_gid
        groups = (group,) if colon else tuple(os.getgrouplist(entry.pw_name, group))
        name, home, shell = entry.pw_name, entry.pw_dir, entry.pw_shell
        return User(name, entry.pw_uid, group, groups, home or "/", shell or "/bin/sh")
    if not uid.isdecimal():
        raise RequestError(BAD_REQUEST, f"no user {spec[:80]!r} in the guest")
    group = int(gid) if colon else int(uid)
    return User(uid, int(uid), group, (group,), "/", "/bin/sh")


def _is_id(text: str) -> bool:
    # The last 32-bit number is -1, which means "leave it" to the system calls.
    return text.isdecimal() and len(text) <= 10 and int(text) < 0xFFFFFFFF


@contextlib.contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Have the file system see this process as `user` for a moment. It has one thread only.

    Without this, a symbolic link that the user's programs put somewhere would lead the agent to
    files that are none of theirs.
    """
    if os.geteuid() != 0 or user.uid == 0:
        yield
        return
    groups = os.getgroups()
    try:
        os.setgroups(user.groups)
        os.setegid(user.gid)
        os.seteuid(user.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
