"""What all handlers share: the folder, the fids, and who the guest takes the host's users for."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from typing import Protocol

from voidbox.ninep.fids import FIDS_MAX, Fid, FidTable
from voidbox.ninep.folder import Folder
from voidbox.ninep.libc import DirentReader

# What Linux's virtio transport can carry, 128 pages less the three that may be lost to alignment.
MSIZE_MAX = 125 * 4096
MSIZE_MIN = 4096
NOBODY = 65534  # who has what is neither the host user's nor the folder's owner's
_SHARE_OF_DESCRIPTORS = 4  # the guest's part of what this process may have open: 1 in so many


class Exchange(Protocol):
    """The data of one request, which goes straight between a file and the guest's memory.

    Attributes:
        payload_bytes: how much a Twrite brought.
        room_bytes: how much an Rread may bring.
    """

    @property
    def payload_bytes(self) -> int: ...
    @property
    def room_bytes(self) -> int: ...

    def write_to(self, fd: int, offset: int, count: int) -> int:
        """Write the payload's first bytes to a file; returns how many it took."""
        ...

    def read_from(self, fd: int, offset: int, count: int) -> int:
        """Read from a file into the room; returns how many bytes there were."""
        ...

    def payload(self, count: int) -> bytes:
        """Return the payload's first bytes."""
        ...


class Owners:
    """The host's users and groups as the guest sees them, and which owners it may ask for.

    The host user who runs voidbox, and the owner of the folder, are the guest's user; everybody
    else is nobody. What the guest makes belongs to the host user.
    """

    def __init__(self, root: os.stat_result, guest_uid: int, guest_gid: int) -> None:
        self._uids = {os.geteuid(), root.st_uid}
        self._gids = {os.getegid(), root.st_gid, *os.getgroups()}
        self._guest_uid = guest_uid
        self._guest_gid = guest_gid

    def uid(self, uid: int) -> int:
        """Return whom a user of the host is in the guest."""
        return self._guest_uid if uid in self._uids else NOBODY

    def gid(self, gid: int) -> int:
        """Return what a group of the host is in the guest."""
        return self._guest_gid if gid in self._gids else NOBODY


class Session:
    """One server's state. Thread: one, the server's, but for the constructor.

    Attributes:
        msize: how long messages may be, as negotiated; 0 before Tversion.
    """

    def __init__(self, path: str, is_read_only: bool, guest_uid: int, guest_gid: int) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = 3 * FIDS_MAX if limit < 0 else min(3 * FIDS_MAX, limit // _SHARE_OF_DESCRIPTORS)
        self.folder = Folder(path, is_read_only, most)
        self.fids = FidTable(self.folder.descriptors)
        self.owners = Owners(self.folder.root.status(), guest_uid, guest_gid)
        self.dirents = DirentReader()
        self.msize = 0

    def walk(self, fid: Fid, names: Sequence[bytes]) -> tuple[list[bytes], Fid | None]:
        """Return the qids on the way along some names, and a new fid if it led to its end.

        Raises:
            OSError: not even the first name leads anywhere.
        """
        folder = self.folder
        at = fid.copy()
        qids: list[bytes] = []
        try:
            for name in names:
                if name == b".." and at.node.identity == folder.root.identity:
                    qids.append(folder.qid(at.node.status()).pack())
                    continue
                node = folder.child(at.node, name)
                at.move(node, at.node.hold(), name)
                qids.append(folder.qid(node.status()).pack())
        except OSError:
            at.node.drop()
            if at.parent is not None:
                at.parent.drop()
            if not qids:
                raise
            return qids, None
        return qids, at

    def close(self) -> None:
        """Free everything. Idempotent."""
        self.fids.clear()
        self.folder.close()
