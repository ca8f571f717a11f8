from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from voidbox.errors import ConfigError, HostError
from voidbox.nat.forwards import Forward, parse_forward
from voidbox.sandbox.process.published import PublishedPorts
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store


class FakeForwards:
    def __init__(self) -> None:
        self.open: list[Forward] = []
        self.refused: dict[int, int] = {}

    def add(self, forward: Forward) -> Forward:
        assert forward.host_port
        if forward.host_port in self.refused:
            raise HostError("refused", self.refused[forward.host_port])
        self.open.append(forward)
        return forward

    def remove(self, forward: Forward) -> bool:
        if forward not in self.open:
            return False
        self.open.remove(forward)
        return True

    def list(self) -> list[Forward]:
        return self.open


class Made:
    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder / "s"))
        record = SandboxRecord(
            name="", kernel="k", image="i", memory_bytes=1, cpus=1, envs={}, metadata={}
        )
        self.id = self.store.create(record).id
        self.forwards = FakeForwards()
        machine = SimpleNamespace(
            config=SimpleNamespace(net=object()),
            publish=self.forwards.add,
            unpublish=self.forwards.remove,
            published=self.forwards.list,
        )
        self.machine = machine
        self.ports = PublishedPorts(self.store, self.id, lambda: machine)  # type: ignore[arg-type, return-value]

    def allocated(self) -> tuple[int, ...]:
        return self.store.read(self.id).ports


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_a_port_of_the_users_choice_is_nobodys_business(made: Made) -> None:
    assert str(made.ports.add(parse_forward("8080:80"))) == "127.0.0.1:8080:80"
    assert made.allocated() == ()
    assert made.ports.remove(parse_forward("8080:80")) and made.ports.list() == []


def test_a_port_that_is_chosen_and_given_back(made: Made) -> None:
    first, second = made.ports.add(parse_forward("0:80")), made.ports.add(parse_forward("0:81/udp"))
    assert (first.host_port, second.host_port) == (9000, 9001)
    assert made.allocated() == (9000, 9001)
    assert made.ports.remove(first)
    assert made.allocated() == (9001,)
    assert not made.ports.remove(first)


def test_ports_of_other_programs_are_passed_over(made: Made) -> None:
    made.forwards.refused = {9000: errno.EADDRINUSE, 9001: errno.EADDRINUSE}
    assert made.ports.add(parse_forward("0:80")).host_port == 9002
    assert made.allocated() == (9002,)


def test_another_failure_is_told_and_keeps_nothing(made: Made) -> None:
    made.forwards.refused = {9000: errno.EADDRNOTAVAIL}
    with pytest.raises(HostError):
        made.ports.add(parse_forward("192.0.2.1:0:80"))
    assert made.allocated() == ()


def test_without_a_network_there_is_nothing_to_publish(made: Made) -> None:
    made.machine.config.net = None
    with pytest.raises(ConfigError, match="no network"):
        made.ports.add(parse_forward("0:80"))
