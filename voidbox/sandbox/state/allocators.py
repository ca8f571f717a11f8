"""Which sandbox has which name, CID and port: the index of the records, kept in one file.

Nothing here locks: whoever loads it and saves it holds the state folder's lock throughout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

from voidbox.errors import ConfigError
from voidbox.sandbox.state.names import is_id, is_name
from voidbox.storage.durable import Corrupted

VERSION = 1
CID_MIN = 3  # 0 is the hypervisor's, 1 local, 2 the host's: <linux/vm_sockets.h>
CID_MAX = 0xFFFF_FFFE  # VMADDR_CID_ANY follows
PORT_MIN, PORT_MAX = 9000, 9999
PORT_SPARE_MAX = 32767  # Linux gives the ports of connections from 32768 on: ip_local_port_range

_DECIMAL = re.compile(r"[1-9][0-9]{0,9}")


class CidAllocator:
    """Gives the smallest CID that is free. Thread: the lock's holder.

    Attributes:
        taken: whose each CID is, by sandbox ID.
    """

    def __init__(self) -> None:
        self.taken: dict[int, str] = {}

    def allocate(self, owner: str) -> int:
        """Return a CID that is the owner's from now on.

        Raises:
            ConfigError: all are taken.
        """
        cid = CID_MIN
        while cid in self.taken:
            cid += 1
        if cid > CID_MAX:
            raise ConfigError("all CIDs are taken: remove some sandboxes")
        self.taken[cid] = owner
        return cid

    def release(self, cid: int) -> None:
        """Have a CID be free; one that is free stays so."""
        self.taken.pop(cid, None)


class PortAllocator:
    """Gives the port after the last one given, then the first again. Thread: the lock's holder.

    So a port that was just released is not given at once to somebody else. When all up to PORT_MAX
    are taken, those after it are given.

    Attributes:
        taken: whose each port is, by sandbox ID.
        next: the one to try first.
    """

    def __init__(self) -> None:
        self.taken: dict[int, str] = {}
        self.next = PORT_MIN

    def allocate(self, owner: str) -> int:
        """Return a port that is the owner's from now on.

        Raises:
            ConfigError: all are taken.
        """
        spare = range(PORT_MAX + 1, PORT_SPARE_MAX + 1)
        port: int
        for port in chain(range(self.next, PORT_MAX + 1), range(PORT_MIN, self.next), spare):
            if port not in self.taken:
                self.taken[port] = owner
                if port <= PORT_MAX:
                    self.next = port + 1 if port < PORT_MAX else PORT_MIN
                return port
        raise ConfigError(
            f"all host ports from {PORT_MIN} to {PORT_SPARE_MAX} are taken: name one, or remove "
            "sandboxes"
        )

    def release(self, port: int) -> None:
        """Have a port be free; one that is free stays so."""
        self.taken.pop(port, None)


class Allocations:
    """Both allocators, and the names. Thread: the lock's holder.

    Attributes:
        names: whose each name is, by sandbox ID. Also of those that have ended, until they are
            removed; one that was just changed may still be here.
    """

    def __init__(self) -> None:
        self.cids = CidAllocator()
        self.ports = PortAllocator()
        self.names: dict[str, str] = {}

    def owners(self) -> set[str]:
        """Return the IDs of all that have something."""
        return {*self.numbered(), *self.names.values()}

    def numbered(self) -> set[str]:
        """Return the IDs of all that have a CID or ports."""
        return {*self.cids.taken.values(), *self.ports.taken.values()}

    def take(self, owner: str, cid: int, ports: Iterable[int]) -> None:
        """Have a CID and ports be a sandbox's; what is none, in a damaged record, is nobody's."""
        if CID_MIN <= cid <= CID_MAX:
            self.cids.taken[cid] = owner
        for port in ports:
            if PORT_MIN <= port <= PORT_SPARE_MAX:
                self.ports.taken[port] = owner

    def release_numbers(self, owner: str) -> None:
        """Have the CID and the ports of a sandbox be free."""
        for taken in (self.cids.taken, self.ports.taken):
            for number in [number for number, its in taken.items() if its == owner]:
                del taken[number]

    def release_all(self, owner: str) -> None:
        """Have all be free that is a sandbox's, its name too."""
        self.release_numbers(owner)
        for name in [name for name, its in self.names.items() if its == owner]:
            del self.names[name]

    def to_json(self) -> dict[str, Any]:
        """Return the tables as JSON has them."""
        return {
            "version": VERSION,
            "cids": {str(cid): owner for cid, owner in self.cids.taken.items()},
            "ports": {str(port): owner for port, owner in self.ports.taken.items()},
            "next_port": self.ports.next,
            "names": dict(self.names),
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> Allocations:
        """Return the tables that to_json described.

        Raises:
            FileNotFoundError: an older voidbox wrote them, which had no names in it.
            Corrupted: there are none.
        """
        allocations = Allocations()
        allocations.cids.taken = _taken(values.get("cids"), CID_MIN, CID_MAX)
        allocations.ports.taken = _taken(values.get("ports"), PORT_MIN, PORT_SPARE_MAX)
        next_port = values.get("next_port")
        if type(next_port) is not int or not PORT_MIN <= next_port <= PORT_MAX:
            raise Corrupted("its next port is wrong")
        allocations.ports.next = next_port
        if "names" not in values:
            raise FileNotFoundError("it has no names")
        allocations.names = _names(values["names"])
        return allocations


def _names(values: object) -> dict[str, str]:
    if not isinstance(values, dict):
        raise Corrupted("the table of names is none")
    for name, owner in values.items():
        if not is_name(name) or not isinstance(owner, str) or not is_id(owner):
            raise Corrupted(f"its entry for {name!r} is wrong")
    return values


def _taken(values: object, low: int, high: int) -> dict[int, str]:
    if not isinstance(values, dict):
        raise Corrupted("a table is missing")
    taken = {}
    for key, owner in values.items():
        is_number = _DECIMAL.fullmatch(key) and low <= int(key) <= high
        if not is_number or not isinstance(owner, str) or not is_id(owner):
            raise Corrupted(f"its entry for {key!r} is wrong")
        taken[int(key)] = owner
    return taken
