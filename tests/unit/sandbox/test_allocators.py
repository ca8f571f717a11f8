"""The allocators, against a model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from voidbox.errors import ConfigError
from voidbox.sandbox.state.allocators import Allocations, CidAllocator, PortAllocator
from voidbox.storage.durable import Corrupted

A, B = "a" * 12, "b" * 12
OWNERS = st.sampled_from([A, B, "c" * 12])


def test_the_smallest_free_cid_is_given() -> None:
    cids = CidAllocator()
    assert [cids.allocate(A) for _ in range(4)] == [3, 4, 5, 6]
    cids.release(4)
    cids.release(4)
    assert [cids.allocate(B) for _ in range(2)] == [4, 7]


def test_ports_wrap_around() -> None:
    ports = PortAllocator()
    assert [ports.allocate(A) for _ in range(1000)] == list(range(9000, 10_000))
    ports.release(9500)
    ports.release(9001)
    assert [ports.allocate(B), ports.allocate(B)] == [9001, 9500]


def test_ports_after_the_usual_ones_are_given_when_these_are_taken() -> None:
    ports = PortAllocator()
    ports.taken = dict.fromkeys(range(9000, 10_000), A)
    assert [ports.allocate(B), ports.allocate(B)] == [10_000, 10_001]
    ports.release(9002)
    assert [ports.allocate(B), ports.allocate(B)] == [9002, 10_002]
    allocations = Allocations()
    allocations.ports = ports
    again = Allocations.from_json(json.loads(json.dumps(allocations.to_json())))
    assert again.ports.taken == ports.taken
    ports.taken = dict.fromkeys(range(9000, 32_768), A)
    with pytest.raises(ConfigError, match="all host ports from 9000 to 32767 are taken"):
        ports.allocate(A)


def test_a_released_port_is_not_the_next_one() -> None:
    ports = PortAllocator()
    ports.release(ports.allocate(A))
    assert ports.allocate(A) == 9001


@pytest.mark.parametrize(
    "wrong",
    [
        {"cids": None}, {"cids": {"2": A}}, {"cids": {"x": A}}, {"cids": {"3": "me"}},
        {"cids": {"03": A}}, {"cids": {"3": 7}}, {"ports": []}, {"ports": {"80": A}},
        {"ports": {"99999999999": A}}, {"next_port": 10_000}, {"next_port": True},
        {"next_port": "9000"}, {"next_port": None}, {"names": []}, {"names": {"-": A}},
        {"names": {"web": 7}}, {"names": {"web": "me"}}, {"ports": {"32768": A}},
    ],
)  # fmt: skip
def test_what_are_no_allocations(wrong: dict[str, Any]) -> None:
    with pytest.raises(Corrupted):
        Allocations.from_json(Allocations().to_json() | wrong)


def test_all_that_is_a_sandboxs_comes_back_and_nothing_else() -> None:
    allocations = Allocations()
    for owner, name in ((A, "a"), (B, "b"), (A, "old")):
        allocations.cids.allocate(owner)
        allocations.ports.allocate(owner)
        allocations.names[name] = owner
    allocations.release_all(A)
    assert (allocations.cids.taken, allocations.ports.taken) == ({4: B}, {9001: B})
    assert allocations.names == {"b": B}


class Model(RuleBasedStateMachine):
    """Numbers are given once, in their order, and come back; a file is between any two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.real = Allocations()
        self.cids: dict[int, str] = {}
        self.ports: dict[int, str] = {}
        self.last_port = 9999

    @rule(owner=OWNERS)
    def take_cid(self, owner: str) -> None:
        cid = self.real.cids.allocate(owner)
        assert cid == min(set(range(3, len(self.cids) + 4)) - self.cids.keys())
        self.cids[cid] = owner

    @rule(owner=OWNERS, count=st.sampled_from([1, 1, 2, 600]))
    def take_ports(self, owner: str, count: int) -> None:
        for _ in range(count):
            if len(self.ports.keys() & range(9000, 10_000)) == 1000:
                port = min(set(range(10_000, 12_000)) - self.ports.keys())
                assert self.real.ports.allocate(owner) == port
                self.ports[port] = owner
                return
            self.last_port += 1
            while self.last_port > 9999 or self.last_port in self.ports:
                self.last_port = 9000 if self.last_port > 9998 else self.last_port + 1
            assert self.real.ports.allocate(owner) == self.last_port
            self.ports[self.last_port] = owner

    @rule(data=st.data())
    def release_one(self, data: st.DataObject) -> None:
        for real, model in ((self.real.cids, self.cids), (self.real.ports, self.ports)):
            if model:
                number = data.draw(st.sampled_from(sorted(model)))
                real.release(number)  # type: ignore[attr-defined]
                del model[number]

    @rule(owner=OWNERS)
    def release_all(self, owner: str) -> None:
        self.real.release_all(owner)
        self.cids = {cid: its for cid, its in self.cids.items() if its != owner}
        self.ports = {port: its for port, its in self.ports.items() if its != owner}

    @invariant()
    def is_the_same_after_a_file(self) -> None:
        self.real = Allocations.from_json(json.loads(json.dumps(self.real.to_json())))
        assert self.real.cids.taken == self.cids
        assert self.real.ports.taken == self.ports
        assert self.real.owners() == {*self.cids.values(), *self.ports.values()}


TestModel = pytest.mark.slow(Model.TestCase)
