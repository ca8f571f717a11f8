"""The keeper's process: forked off the sandbox's before that has a thread; they end together."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from voidbox.errors import HostError, VoidboxError
from voidbox.event_loop import EventLoop
from voidbox.jail import landlock, numbers, privileges, seccomp
from voidbox.nat.resolv_conf_file import RESOLV_CONF
from voidbox.sandbox.control import describe_error
from voidbox.sandbox.keeper import channel
from voidbox.sandbox.keeper.channel import Channel, Channels
from voidbox.sandbox.process.logs import OWNER_BYTES_MAX, make_formatter
from voidbox.sandbox.relay.mates import StoreMates
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.vsock.unix import connect_unix

if TYPE_CHECKING:
    from voidbox.nat.backend import NatConfig
    from voidbox.sandbox.keeper.kept_secrets import KeptSecrets
    from voidbox.sandbox.keeper.network import NetworkKeeper

_SLOW_CHANNELS = 4  # as many as the relay has workers

log = logging.getLogger(__name__)


class Keeper:
    """The keeper, seen from the machine's process; made before that has a second thread.

    Attributes:
        quick: for what is answered at once.
        slow: for what may take seconds.
        queries: DNS; see keeper.network.
        alive_fd: gets readable, at its end, when the keeper is gone.
    Raises:
        HostError: the host gives no process or descriptors.
    """

    def __init__(self, store: Store, record: SandboxRecord, net: NatConfig | None) -> None:
        pairs = [channel.pair() for _ in range(2 + _SLOW_CHANNELS)]
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        alive, ends = os.pipe()
        gc.freeze()  # so that the child's collector touches, and so copies, nothing of it
        try:
            pid = os.fork()
        except OSError as error:
            raise HostError.from_errno("fork the sandbox's keeper", error.errno or 0) from error
        if not pid:
            _be_keeper(store.folder, record, net, theirs, {ends, *(s.fileno() for s in theirs)})
        for sock in theirs:
            sock.close()
        os.close(ends)
        self.alive_fd = alive
        self.quick, self.queries = Channel(ours[0]), ours[1]
        self.queries.setblocking(False)
        self.slow = Channels(ours[2:])

    def dial(self, port: int) -> socket.socket:
        """Connect to the host's program that listens for a port of the guest's.

        Raises:
            OSError: nobody does.
        """
        answer, fd = self.quick.ask("dial", port=port)
        if fd is None:
            number = int(answer["errno"])
            raise OSError(number, os.strerror(number))
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd)

    def names(self) -> list[str]:
        """See relay.mates."""
        return [str(name) for name in self.slow.request("names")["names"]]

    def deliver(self, to: str, from_name: str, text: str) -> str:
        """See relay.mates; the keeper says who it is from."""
        return str(self.slow.request("deliver", to=to, text=text)["outcome"])

    def remove(self) -> None:
        """Delete the sandbox, which nobody keeps alive any more.

        Raises:
            VoidboxError: see Store.remove.
            OSError: the keeper is gone.
        """
        self.slow.request("remove")


def _be_keeper(
    folder: str,
    record: SandboxRecord,
    net: NatConfig | None,
    socks: list[socket.socket],
    kept_fds: set[int],
) -> NoReturn:
    """Thread: the child's only one."""
    status = 1
    try:
        _close_others(kept_fds)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logger = logging.getLogger("voidbox")
        logger.handlers[:] = [_KeeperLog(f"{folder}/sandboxes/{record.id}/owner.log")]
        _Serving(folder, record, net, socks).run()
        status = 0
    except BaseException:
        log.exception("the sandbox's keeper failed")
    finally:
        os._exit(status)


def _close_others(kept_fds: set[int]) -> None:
    """The pipes of whoever started the sandbox, say, must end with the sandbox's process."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept_fds:
            with contextlib.suppress(OSError):
                os.close(int(name))


class _KeeperLog(logging.Handler):
    """Appends to the log that the sandbox's process has, and sets aside when it is long."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(make_formatter())
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record).encode("utf-8", "replace") + b"\n"
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_size < OWNER_BYTES_MAX:
                    os.write(fd, line)
            finally:
                os.close(fd)


class _Serving:
    """Thread: what is quick on a loop, what is slow on a thread each."""

    def __init__(
        self, folder: str, record: SandboxRecord, net: NatConfig | None, socks: list[socket.socket]
    ) -> None:
        self._store = Store(folder)
        self._record = record
        self._mates = StoreMates(self._store, record.team)
        self._vsock = self._store.path(record.id, "vsock.sock")
        self._quick, queries, *self._slow = socks
        self._loop = EventLoop(self._on_fault)
        self._refused: set[str] = set()
        self._network: NetworkKeeper | None = None
        self._secrets: KeptSecrets | None = None
        if net is not None:
            from voidbox.sandbox.keeper.network import NetworkKeeper

            guard = None
            if record.guarded is not None:
                from voidbox.sandbox.keeper.kept_secrets import KeptSecrets

                self._secrets = KeptSecrets(self._store, record)
                guard = self._secrets.guard
            self._network = NetworkKeeper(net, self._loop, queries, _log_line, guard)
        self._quick.setblocking(False)
        self._loop.watch(self._quick.fileno(), select.EPOLLIN, lambda ready: self._answer_quick())
        _shut_in(folder)

    def run(self) -> None:
        """Serve until the machine's process is gone."""
        threads = [
            threading.Thread(target=self._serve_slow, args=(sock,), daemon=True)
            for sock in self._slow[1:]
        ]
        for thread in threads:
            thread.start()
        self._loop.start()
        if self._secrets is not None:
            self._secrets.serve()
        self._serve_slow(self._slow[0])

    def _on_fault(self, error: BaseException) -> None:
        log.error("the sandbox's keeper failed: %r", error, exc_info=error)

    # What is answered at once. Thread: loop.

    def _answer_quick(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._quick, channel.MESSAGE_BYTES_MAX, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._loop.unwatch(self._quick.fileno())
            return
        values = channel.parse(data)
        op = values.get("op")
        if op == "refusals" and fds:
            self._loop.watch(fds[0], select.EPOLLIN, lambda ready: self._refuse(fds[0], ready))
            return
        for fd in fds:
            os.close(fd)
        if op == "dial":
            answer, sock = self._dial(values)
        elif self._network is not None and isinstance(op, str):
            answer, sock = self._network.answer(op, values)
        else:
            answer, sock = {"errno": errno.ENOSYS}, None
        channel.send_answer(self._quick, answer, sock.fileno() if sock is not None else None)
        if sock is not None:
            sock.close()

    def _dial(self, values: dict[str, Any]) -> tuple[dict[str, object], socket.socket | None]:
        port = values.get("port")
        if type(port) is not int or not 0 <= port < 1 << 32:
            return {"errno": errno.EINVAL}, None
        try:
            return {"errno": 0}, connect_unix(f"{self._vsock}_{port}")
        except OSError as error:
            return {"errno": error.errno or errno.EIO}, None

    def _refuse(self, listener_fd: int, ready: int) -> None:
        """Answer a system call that the filter does not know, and say once which it is."""
        if not ready & select.EPOLLIN:
            self._loop.unwatch(listener_fd)  # all that had the filter are gone
            return
        found = seccomp.answer_next(listener_fd, errno.EPERM)
        if found is None:
            return
        name = numbers.name_of(found[0])
        if name not in self._refused:
            self._refused.add(name)
            words = " ".join(f"{argument:#x}" for argument in found[1])
            log.warning("jail: refused %s (%s), and from now on without a word", name, words)

    # What may take seconds. Thread: one a channel.

    def _serve_slow(self, sock: socket.socket) -> None:
        """Answer until the other end is gone; then this process ends, wherever its threads are."""
        while True:
            try:
                data = sock.recv(channel.MESSAGE_BYTES_MAX)
            except OSError:
                data = b""
            if not data:
                _end_all(self._record.pid)
            try:
                answer = self._answer_slow(channel.parse(data))
            except VoidboxError as error:
                answer = describe_error(error)
            except Exception as error:  # a fault of ours: told to both sides
                log.exception("the keeper failed at %.200r", data)
                answer = {"ok": False, "error": f"voidbox failed: {error!r}", "kind": "host"}
            channel.send_answer(sock, answer)

    def _answer_slow(self, values: dict[str, Any]) -> dict[str, object]:
        op = values.get("op")
        if op == "names":
            return {"names": self._mates.names()}
        if op == "deliver":
            own_name = self._store.read(self._record.id).name
            outcome = self._mates.deliver(str(values.get("to")), own_name, str(values.get("text")))
            return {"outcome": outcome}
        if op == "remove":
            self._store.remove(self._record.id)
            return {}
        raise HostError(f"the keeper knows no {op!r}")


def _end_all(pid: int) -> NoReturn:
    """End with the machine's process, and have nothing outlive it that it may have forked.

    What it forks cannot leave its group, of which it is the leader: the filter has no setpgid(2).
    """
    if os.getpgrp() == pid:
        os.killpg(pid, signal.SIGKILL)
    os._exit(0)


def _log_line(line: str) -> None:
    log.info("%s", line)


def _shut_in(folder: str) -> None:
    """Leave the keeper its state folder, and the network. What the kernel cannot do is left out."""
    from voidbox.sandbox.process.surroundings import libraries

    privileges.limit(core=0)
    privileges.set_no_new_privs()
    privileges.set_undumpable()
    rules = [(folder, landlock.WRITE), (f"/proc/{os.getpid()}", landlock.READ)]
    # The name servers' file may be replaced: a rule for it alone would hold for the old one.
    servers = os.path.dirname(os.path.realpath(RESOLV_CONF))
    rules += [(path, landlock.READ) for path in (*libraries(), servers, "/etc")]
    with contextlib.suppress(OSError):
        landlock.restrict(rules, with_network=True)
