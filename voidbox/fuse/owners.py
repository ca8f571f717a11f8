"""Who the guest takes the host's users and groups for."""

from __future__ import annotations

import os

GUEST_UID = GUEST_GID = 1000
NOBODY = 65534  # who has what is neither the host user's nor the folder's owner's


class Owners:
    """The host's users and groups as the guest sees them, and which owners it may ask for.

    The host user who runs voidbox, and the owner of the folder, are the guest's user; everybody
    else is nobody. What the guest makes belongs to the host user.

    Args:
        root: the folder's status.
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
