"""Sandboxes as the relay sees them: a server and a mailbox each, and the guest's real command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voidbox.agent.packing import pack, unpack
from voidbox.sandbox.relay import protocol
from voidbox.sandbox.relay.courier import Courier, Peer, deliver_within
from voidbox.sandbox.relay.mailbox import Mailbox
from voidbox.sandbox.relay.rate import Rate
from voidbox.sandbox.relay.server import RelayServer, deliver_op

ROOT = Path(__file__).parents[3]


class Member:
    """One sandbox."""

    def __init__(self, world: World, name: str, team: str | None, rate: Rate | None) -> None:
        self.name = name
        self.team = team
        self.is_running = True
        self.mailbox = Mailbox(messages_max=20, bytes_max=100_000)
        self.path = str(world.folder / f"{name}.sock_5001")
        self.faults: list[str] = []
        deliver = deliver_within(team, world.find, world.hand_over)
        courier = Courier(team, lambda: self.name, lambda: world.names(team), deliver)
        self.server = RelayServer(self.path, self.mailbox, courier, self.faults.append, rate)
        self.server.start()

    def start(self, *arguments: str, **keywords: Any) -> subprocess.Popen[bytes]:
        """Start the guest's command as an ordinary program."""
        return subprocess.Popen(
            [sys.executable, "-m", "guest_agent.relay", *arguments],
            cwd=ROOT,
            env={**os.environ, "VOIDBOX_RELAY_SOCKET": self.path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **keywords,
        )

    def run(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Run the guest's command; returns its status, stdout and stderr."""
        process = self.start(*arguments, stdin=subprocess.PIPE)
        out, err = process.communicate(stdin, timeout=30)
        return process.returncode, out.decode(), err.decode()

    def dial(self) -> Client:
        """Connect as a program of the guest that speaks the protocol by itself."""
        return Client(self.path)


class Client:
    """A connection to a relay, of a program that may do as it likes."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self._decoder = protocol.Decoder(protocol.REPLY_BYTES_MAX)

    def send(self, **values: object) -> None:
        self.socket.sendall(protocol.encode(pack(values)))

    def reply(self) -> dict[str, Any] | None:
        """Return the next reply; None at the end of the connection."""
        while (payload := self._decoder.next()) is None:
            try:
                data = self.socket.recv(4096)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._decoder.feed(data)
        values = unpack(payload)
        assert isinstance(values, dict)
        return values

    def ask(self, **values: object) -> dict[str, Any]:
        self.send(**values)
        reply = self.reply()
        assert reply is not None
        return reply

    def close(self) -> None:
        self.socket.close()


class World:
    """All sandboxes of a host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: dict[str, Member] = {}
        self.looked_up: list[str] = []
        # Called in the place of a peer's owner, if set.
        self.on_hand_over: Callable[[str], None] = lambda name: None
        self._lock = threading.Lock()

    def add(self, name: str, team: str | None = "red", rate: Rate | None = None) -> Member:
        member = self.members[name] = Member(self, name, team, rate)
        return member

    def find(self, name: str) -> Peer | None:
        with self._lock:
            self.looked_up.append(name)
        member = self.members.get(name)
        return None if member is None else Peer(name, member.team, member.is_running)

    def hand_over(self, peer: Peer, from_name: str, text: str) -> str:
        self.on_hand_over(peer.name)
        values: dict[str, object] = {"from": from_name, "text": text}
        return str(deliver_op(self.members[peer.name].mailbox, values)["outcome"])

    def names(self, team: str | None) -> list[str]:
        return [m.name for m in self.members.values() if m.team == team and m.is_running]

    def close(self) -> None:
        for member in self.members.values():
            member.server.close()
            assert member.faults == []
