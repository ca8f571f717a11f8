"""A sandbox's process whose machine is a real agent, run as an ordinary program of this one.

Everything but the VM is real: records, control socket, heartbeat, logs, and the way to the agent
through vsock.sock. The image is a JSON file of options, see Options.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

from voidbox.agent import connect, protocol
from voidbox.agent.client import AgentClient
from voidbox.errors import ConfigError, HostError
from voidbox.event_loop import EventLoop
from voidbox.sandbox.process import life, owner, restoring
from voidbox.sandbox.process.heartbeat import Heartbeat
from voidbox.sandbox.snapshots.record import SnapshotRecord
from voidbox.sandbox.state import records
from voidbox.snapshot.folder import Draft
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.outcome import EndReason, Outcome


class FakeConsole:
    def __init__(self) -> None:
        self._outputs: list[object] = []
        self._text = ""

    def attach(self, output: object) -> None:
        self._outputs.append(output)

    def say(self, line: str) -> None:
        self._text += f"{line}\n"
        for output in self._outputs:
            output.write(f"{line}\n".encode())  # type: ignore[attr-defined]

    def tail(self) -> str:
        return self._text.strip()


class FakeMachine:
    """Ends with its agent; is paused by SIGSTOP. A snapshot of it is the secret alone."""

    def __init__(self, config: MachineConfig, secret: bytes) -> None:
        assert config.vsock is not None
        self.config = config._replace(serial_line=True)
        self.console = FakeConsole()
        self.layers: list[str] = []
        self.is_paused = False
        self.loop = EventLoop(on_error=lambda error: None)
        self._vsock_path = config.vsock.path
        self._folder = sys.argv[1]
        self.agent_path = f"{self._folder}/agent.sock"
        self._secret = secret
        self._ended = threading.Event()
        self._closed = threading.Event()
        self._outcome: Outcome | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self.loop.start()
        with open(f"{self._folder}/agent.secret", "wb") as file:
            file.write(self._secret)
        arguments = ("--socket", self.agent_path, "--secret-file", file.name)
        with suppress(FileNotFoundError):
            os.unlink(self.agent_path)  # of the machine before
        # A machine ends with its process, however that ends.
        die_with_us = ("setpriv", "--pdeathsig", "KILL")
        self._process = subprocess.Popen(
            [*die_with_us, sys.executable, "-P", "-m", "guest_agent", *arguments],
            process_group=0,
        )
        with open(f"{self._folder}/agent.pid", "w") as file:
            file.write(str(self._process.pid))
        self.console.say("the guest boots")
        if self._vsock_path is not None:
            self.publish_vsock(self._vsock_path)
        self._spawn(self._wait_for_agent)

    def publish_vsock(self, path: str) -> None:
        self._vsock_path = path
        self._listener.bind(path)
        self._listener.listen()
        self._spawn(self._serve)

    def snapshot(
        self,
        folder: str,
        *,
        stop: bool,
        disks: str,
        timeout_s: float,
        extra: dict[str, bytes],
        on_frozen: Callable[[], object],
    ) -> str:
        mode = os.environ.get("VOIDBOX_FAKE_SNAPSHOT", "")
        draft = Draft(folder)
        if mode == "full":
            draft.abort()
            raise HostError("cannot write memory: No space left on device", 28)
        if mode == "dies":  # killed by somebody, and a while later the snapshot knows
            self.stop()
            time.sleep(0.5)
            raise HostError("the machine has ended")
        if mode == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if stop:
            self._signal(signal.SIGSTOP)
        else:
            on_frozen()
        if mode == "slow" and self._closed.wait(1):
            draft.abort()
            raise HostError("the machine's process has ended")
        if mode == "waits":
            _await_go()
        for name, content in {"memory": b"", "machine.bin": b"", **extra}.items():
            with open(draft.file(name), "wb") as file:
                file.write(content)
        draft.commit()
        if mode == "lies":
            _lie(folder)
        if stop:
            self.stop()
        return f"stop={stop} disks={disks}"

    def record_working_set(self, path: str, bytes_max: int) -> int:
        with open(path, "x") as file:
            file.write(self._folder)
        return bytes_max

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target)
        thread.start()
        self._threads.append(thread)

    def _wait_for_agent(self) -> None:
        assert self._process is not None
        status = self._process.wait()
        if self._outcome is None:
            self.console.say(f"the agent ended: {status}")
            panic = Outcome(EndReason.PANIC, "Attempted to kill init!")
            self._outcome = panic if status else Outcome(EndReason.POWER_OFF)
        self._ended.set()

    def _serve(self) -> None:
        """Be the vsock's Unix socket."""
        while True:
            try:
                program, _ = self._listener.accept()
            except OSError:
                return
            line = b""
            while not line.endswith(b"\n"):
                line += program.recv(1)
            agent = socket.socket(socket.AF_UNIX)
            agent.connect(self.agent_path)
            program.sendall(b"OK 5\n")
            for source, sink in ((program, agent), (agent, program)):
                self._spawn(partial(_copy, source, sink))

    def wait(self, timeout_s: float | None = None) -> Outcome | None:
        if not self._ended.wait(timeout_s):
            return None
        assert self._outcome is not None
        return self._outcome._replace(console_tail=self.console.tail())

    def stop(self) -> None:
        if self._outcome is None:
            self._outcome = Outcome(EndReason.STOPPED)
        if self._process is None:
            self._ended.set()
        else:
            self._process.kill()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)
        self.is_paused = True

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
        self.is_paused = False

    def press_power_button(self) -> None:
        self.console.say("the power button was pressed")
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def metrics(self) -> dict[str, object]:
        exits = {"KVM_EXIT_IO": 7}
        network = {"bytes_to_guest": 3 << 20, "bytes_from_guest": 5 << 10}
        return {
            "exits": exits, "cpu_ns": 1, "rss_bytes": 1, "rss_bytes_max": 1, "network": network
        }  # fmt: skip

    def limit(self, limits: dict[str, object]) -> None:
        self.console.say(f"limits: {limits}")

    def published(self) -> list[object]:
        return []

    def adopt_serial(self, sock: socket.socket) -> None:
        with sock:
            sock.sendall(b"hello from the line")

    def close(self) -> None:
        self._closed.set()
        self.stop()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        self.loop.close()
        if self._vsock_path is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._vsock_path)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


class FakeEndpoint:
    """Reaches the agent past vsock.sock, as the machine's own process does."""

    cid = 3

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self._machine.agent_path)
        except BaseException:
            sock.close()
            raise
        return sock

    def connect_serial(self) -> None:
        return None

    def has_ended(self, timeout_s: float) -> bool:
        return self._machine.wait(timeout_s) is not None

    def explain_end(self) -> str:
        outcome = self._machine.wait(2)
        return "the guest still runs" if outcome is None else outcome.describe()


def _await_go() -> None:
    """Wait until a test says so, by a file in the sandbox's folder."""
    while not os.path.exists(f"{sys.argv[1]}/go"):
        time.sleep(0.01)


def _lie(folder: str) -> None:
    """Say of a snapshot what somebody might who has taken the machine's process over."""
    record = records.SandboxRecord(
        "x", "/k", "/i", 1 << 30, 8, {}, {}, id="f" * 12, jail="off", disks=("/etc/shadow",)
    )
    made = SnapshotRecord("f" * 12, "x", "snapshot", 1.0, "", {}, "0.1.0", record)
    for name, content in (("snapshot.json", made.encode()), ("secret", b"x" * 32)):
        with suppress(FileNotFoundError):
            os.unlink(f"{folder}/{name}")
        with open(f"{folder}/{name}", "wb") as file:
            file.write(content)
    os.symlink("/etc", f"{folder}/working-set")


def _refuse_to_delete(path: str) -> None:
    raise HostError(f"cannot delete {path}: Device or resource busy", 16)


def _nervous(*arguments: Any, **options: Any) -> Heartbeat:
    return Heartbeat(*arguments[:5], 0.1, answer_s=0.3, **options)


class FakeGuest:
    def __init__(
        self, config: MachineConfig, secret: bytes, snapshot: str | None = None, /
    ) -> None:
        assert config.initramfs is not None
        with open(config.initramfs) as file:
            self._options = SimpleNamespace(**{"mode": "", **json.load(file)})
        boots_badly = snapshot is None and os.environ.get("VOIDBOX_FAKE_BOOT") == "bad"
        if self._options.mode == "bad" or boots_badly:
            raise ConfigError("the kernel is no kernel")
        if self._options.mode == "bug":
            raise ZeroDivisionError("a bug")
        if self._options.mode == "nervous":  # notices a dead agent within a second
            life.Heartbeat = _nervous  # type: ignore[misc, assignment]
        problem = os.environ.get("VOIDBOX_FAKE_RESTORE") if snapshot is not None else None
        if problem == "bad":
            raise HostError("the snapshot is of another CPU")
        if problem == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if problem == "no-adopt":
            restoring.protocol = SimpleNamespace(**{**vars(protocol), "ADOPT": protocol.ATTACH})  # type: ignore[assignment]
        if problem == "stuck":
            life.remove_tree = _refuse_to_delete  # type: ignore[assignment]
        if problem == "waits":
            adopt = restoring.adopt

            def wait(*arguments: Any) -> None:
                _await_go()
                adopt(*arguments)

            restoring.adopt = wait
        self.secret = secret
        self.machine = FakeMachine(config, secret)

    def connect(self, timeout_s: float, log: Callable[[str], None]) -> AgentClient:
        log(f"the agent has {timeout_s:g} s")
        if self._options.mode == "panic":
            time.sleep(0.3)
            self.machine._signal(signal.SIGKILL)
            self.machine.wait()
        if self._options.mode == "slow":
            self.machine.wait()
        return connect.connect(FakeEndpoint(self.machine), self.secret, timeout_s, log)

    def close(self) -> None:
        self.machine.close()


def main(argv: list[str]) -> int:
    return owner.main(argv, FakeGuest)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
