"""What a zygote's children are started with."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sandbox.states import ROOT
from voidbox.errors import HostError
from voidbox.sandbox.child_environment import environment
from voidbox.sandbox.zygote import protocol
from voidbox.sandbox.zygote.client import Zygote

OWNER = "tests.unit.sandbox.telling_owner"


def test_each_has_the_variables_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zygote's own as well as others: a program may change some between two starts."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    first = environment() | {"VOIDBOX_A": "1"}
    second = environment() | {"VOIDBOX_B": "2"}
    with Zygote(OWNER, first) as zygote, open(tmp_path / "log", "wb") as log:
        for variables in (first, second, first):
            ours, theirs = os.pipe()
            with open(ours, "rb") as status:
                pid, pidfd = zygote.spawn(["/somewhere"], variables, [log.fileno(), theirs])
                os.close(theirs)
                os.close(pidfd)
                told = json.loads(status.read())
            assert told == {"folder": "/somewhere", "environment": variables, "session": pid}
    assert (tmp_path / "log").read_bytes() == b""


def test_one_whose_pidfd_has_no_room_here_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive, killed = protocol.receive, []

    def lose(sock: Any) -> Any:  # as the kernel does where no descriptor is free
        answer, fds = receive(sock)
        for fd in fds:
            os.close(fd)
        return answer, []

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(protocol, "receive", lose)
    ours, theirs = os.pipe()
    with (
        Zygote(OWNER, environment()) as zygote,
        open(tmp_path / "log", "wb") as log,
        open(ours, "rb") as status,
        monkeypatch.context() as patch,
    ):
        patch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
        with pytest.raises(HostError, match="EMFILE"):
            zygote.spawn(["/somewhere"], environment(), [log.fileno(), theirs])
        os.close(theirs)
        told = json.loads(status.read())
    assert killed == [(told["session"], signal.SIGKILL)]
