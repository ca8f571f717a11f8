"""One kernel: code in, messages out. Thread: one at a time; interrupt() from any."""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from .messages import Message, error, translate

_READY_S = 120.0
_LOOK_S = 0.25
_REPLY_S = 10.0
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "kernel_side.py")) as file:
    _KERNEL_SIDE = file.read()  # now: what is in /tmp is anybody's to remove later
# It runs without leaving a name in the user's namespace.
_INSTALL = (
    f"exec(compile({_KERNEL_SIDE!r}, 'voidbox_kernel', 'exec'), {{'__name__': 'voidbox_kernel'}})"
)


class NoKernel(Exception):
    """The image has no kernel for this language."""


def find_kernel(language: str) -> str:
    """Return the name of an installed kernel.

    Raises:
        NoKernel: there is none.
    """
    specs = KernelSpecManager().get_all_specs()
    for name, found in sorted(specs.items()):
        spec = found["spec"]
        if language.lower() in (name.lower(), str(spec.get("language", "")).lower()):
            return str(name)
    if language == "python":
        return "python3"  # ipykernel's own, which need not be installed
    known = ", ".join(sorted({str(found["spec"].get("language")) for found in specs.values()}))
    raise NoKernel(f"this sandbox has no kernel for {language!r}, only for {known or 'python'}")


class Kernel:
    """A kernel's process.

    Args:
        language: see find_kernel.
        cwd: where its code begins.
    """

    def __init__(self, language: str, cwd: str) -> None:
        self._is_python = language == "python"
        self._cwd = cwd
        self._folder = tempfile.mkdtemp(prefix="kernel-")
        # Over Unix sockets: no other user of the sandbox reaches them.
        self._manager = KernelManager(
            kernel_name=find_kernel(language),
            transport="ipc",
            ip=os.path.join(self._folder, "ipc"),
            connection_file=os.path.join(self._folder, "connection.json"),
        )
        self._start()

    def _start(self) -> None:
        self._manager.start_kernel(cwd=self._cwd)
        self._connect()

    def _connect(self) -> None:
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=_READY_S)
        if self._is_python:
            self._run_silently(_INSTALL)

    def restart(self) -> None:
        """Begin anew: what the old process had is gone."""
        self._client.stop_channels()
        self._manager.restart_kernel(now=True)
        self._connect()

    def close(self) -> None:
        """End it."""
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def interrupt(self) -> None:
        """Have what runs raise KeyboardInterrupt. Thread: any."""
        self._manager.interrupt_kernel()

    def execute(self, code: str, env: dict[str, str]) -> Iterator[Message | None]:
        """Run code; yield what comes of it, and None when nothing has come for a moment.

        Args:
            env: variables of this execution.
        """
        if env:
            self._run_silently(f"__import__('voidbox_kernel').enter({env!r})")
        number = self._client.execute(code, allow_stdin=False, stop_on_error=False)
        yield from self._messages(number)
        if env and self._manager.is_alive():
            self._run_silently("__import__('voidbox_kernel').leave()")

    @property
    def takes_env(self) -> bool:
        """Whether an execution can have variables of its own."""
        return self._is_python

    def _run_silently(self, code: str) -> None:
        number = self._client.execute(code, silent=True, store_history=False, allow_stdin=False)
        for _ in self._messages(number):
            pass

    def _messages(self, number: str) -> Iterator[Message | None]:
        """Yield the answers to a request, until it is done or the kernel is dead."""
        while True:
            try:
                message: Any = self._client.get_iopub_msg(timeout=_LOOK_S)
            except queue.Empty:
                if not self._manager.is_alive():
                    yield error("KernelDied", "the kernel's process ended: its state is lost")
                    self.restart()
                    return
                yield None
                continue
            if message["parent_header"].get("msg_id") != number:
                continue  # of a thread that an earlier execution left behind
            if message["msg_type"] == "status":
                if message["content"]["execution_state"] == "idle":
                    self._take_reply(number)
                    return
                continue
            found = translate(message["msg_type"], message["content"])
            if found is not None:
                yield found

    def _take_reply(self, number: str) -> None:
        deadline = time.monotonic() + _REPLY_S
        while time.monotonic() < deadline:
            try:
                reply: Any = self._client.get_shell_msg(timeout=_LOOK_S)
            except queue.Empty:
                continue
            if reply["parent_header"].get("msg_id") == number:
                return
