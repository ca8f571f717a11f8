"""What a worker's machine has of its keeper instead of the host: network, vsock, console.

The vsock's socket is listened on by the worker, but made by the keeper, who also connects to the
host's programs that the guest asks for.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING

from voidbox.sandbox.keeper.channel import Channel
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.console import FdOutput, wait_flushed

if TYPE_CHECKING:
    from voidbox.vmm.machine import Machine

_INPUT_BYTES = 4096
_INPUT_BYTES_MAX = 64 << 10  # what the guest has not taken; more waits in the socket
_FLUSH_S = 1.0


class Ends:
    """A worker's ends of the keeper's sockets. Thread: main.

    Args:
        asks: for what the keeper answers at once; see keeper.serving.
        queries: DNS; see keeper.network.
        console: a stream.
    """

    def __init__(self, asks: socket.socket, queries: socket.socket, console: socket.socket) -> None:
        self.asks = Channel(asks)
        self._queries = queries
        self._console = console
        queries.setblocking(False)
        console.setblocking(False)

    def furnish(self, config: MachineConfig) -> MachineConfig:
        """Return the machine to build."""
        if config.net is not None:
            from voidbox.sandbox.keeper.outside import KeptNetwork

            outside = KeptNetwork(self.asks, self._queries, config.net.make_policy())
            config = config._replace(net=config.net._replace(outside=outside))
        if config.vsock is not None and not config.vsock.is_vhost:
            config = config._replace(vsock=config.vsock._replace(path=None, dial=self._dial))
        return config

    def attach(self, machine: Machine) -> None:
        """Join a machine's console to the keeper's, before its start."""
        console, sock = machine.console, self._console
        console.attach(FdOutput(machine.loop, sock.fileno(), on_broken=lambda error: None))
        _Input(machine, sock)

    def end_console(self, machine: Machine) -> None:
        """Let the keeper know that no more comes. Thread: any but the loop."""
        wait_flushed(machine.loop, machine.console, _FLUSH_S)
        with contextlib.suppress(OSError):  # the keeper is gone
            self._console.shutdown(socket.SHUT_WR)

    def _dial(self, port: int) -> socket.socket:
        """Connect to the host's program that listens for a port of the guest's; raises OSError."""
        answer, fd = self.asks.ask("dial", port=port)
        if fd is None:
            number = int(answer["errno"])
            raise OSError(number, os.strerror(number))
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd)


class _Input:
    """Types what comes into the guest's console, as fast as that takes it. Thread: loop."""

    def __init__(self, machine: Machine, sock: socket.socket) -> None:
        self._loop = machine.loop
        self._console = machine.console
        self._socket = sock.dup()  # its output is watched by itself
        self._console.on_input_empty = self._read_on
        self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._loop.watch(self._socket.fileno(), select.EPOLLIN, lambda ready: self._read())

    def _read(self) -> None:
        try:
            data = self._socket.recv(_INPUT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or self._console.input_bytes > _INPUT_BYTES_MAX:
            self._loop.unwatch(self._socket.fileno())  # for good, or until it is taken
        if data:
            self._console.send(data)
