"""The store, against a model: several processes' views, deaths and damage in any order."""

from __future__ import annotations

import json
import os
import tempfile
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.unit.sandbox.states import FAST_DISK, allocations, wanted
from voidbox.errors import ConfigError
from voidbox.sandbox.state.lifecycle import Event, State, step
from voidbox.sandbox.state.store import Store

NAMES = st.sampled_from(["", "", "a", "b", "c"])


class _Model(NamedTuple):
    name: str
    state: State
    cid: int
    ports: tuple[int, ...] = ()
    is_alive: bool = True


class StoreModel(RuleBasedStateMachine):
    """One object makes all; each sandbox has another, its process, that can die."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory(dir=FAST_DISK)
        self.folder = f"{self.temporary.name}/s"
        self.store = Store(self.folder)
        self.owners: dict[str, Store] = {}
        self.model: dict[str, _Model] = {}
        self.next_port = 9000

    def teardown(self) -> None:
        for store in (self.store, *self.owners.values()):
            store.close()
        self.temporary.cleanup()

    def live(self) -> list[_Model]:
        return [its for its in self.model.values() if not its.state.is_final]

    @rule(target=ids, name=NAMES)
    def create(self, name: str) -> str:
        if name in {its.name for its in self.model.values()}:
            with pytest.raises(ConfigError, match="already"):
                self.store.create(wanted(name))
            return next(id for id, its in self.model.items() if its.name == name)
        made = self.store.create(wanted(name))
        taken = {its.cid for its in self.live()}
        assert made.cid == min(set(range(3, len(taken) + 4)) - taken)
        self.owners[made.id] = Store(self.folder)
        self.owners[made.id].adopt(made.id)
        self.store.release(made.id)
        self.model[made.id] = _Model(made.name, State.CREATING, made.cid)
        return made.id

    @rule(id=ids, event=st.sampled_from(Event))
    def happen(self, id: str, event: Event) -> None:
        its = self.model.get(id)
        try:
            if its is None:
                raise ConfigError("gone")
            state = step(its.state, event)
        except ConfigError:
            with pytest.raises(ConfigError):
                self.store.update(id, event)
        else:
            assert self.owners[id].update(id, event).state is state
            ports = () if state.is_final else its.ports
            self.model[id] = its._replace(state=state, ports=ports)

    @rule(id=ids)
    def die(self, id: str) -> None:
        if id in self.model:
            self.owners[id].close()
            self.model[id] = self.model[id]._replace(is_alive=False)

    @rule(id=ids, name=NAMES.filter(bool))
    def rename(self, id: str, name: str) -> None:
        others = {its.name for other, its in self.model.items() if other != id}
        if id not in self.model or name in others:
            with pytest.raises(ConfigError):
                self.store.rename(id, name)
        else:
            assert self.owners[id].rename(id, name).name == name
            self.model[id] = self.model[id]._replace(name=name)

    @rule(id=consumes(ids))
    def remove(self, id: str) -> None:
        if id not in self.model or self.model[id].is_alive:
            with pytest.raises(ConfigError):
                self.store.remove(id)
        else:
            self.store.remove(id)
            del self.model[id]

    @rule(id=ids)
    def allocate_port(self, id: str) -> None:
        its = self.model.get(id)
        if its is None or its.state.is_final:
            with pytest.raises(ConfigError):
                self.store.allocate_port(id)
            return
        taken = {port for other in self.live() for port in other.ports}
        while self.next_port in taken:
            self.next_port += 1
        assert self.owners[id].allocate_port(id) == self.next_port
        self.model[id] = its._replace(ports=(*its.ports, self.next_port))
        self.next_port += 1

    @rule(id=ids, which=st.integers(0, 3))
    def release_port(self, id: str, which: int) -> None:
        its = self.model.get(id)
        if its is not None and its.ports:
            port = its.ports[which % len(its.ports)]
            self.owners[id].release_port(id, port)
            kept = tuple(other for other in its.ports if other != port)
            self.model[id] = its._replace(ports=kept)

    @rule()
    def clean(self) -> None:
        dead = {id for id, its in self.model.items() if not its.is_alive}
        expected = {id for id in dead if not self.model[id].state.is_final}
        assert {record.id for record in self.store.clean()} == expected
        for id in expected:
            self.model[id] = self.model[id]._replace(state=State.CRASHED, ports=())
        cids = {str(its.cid): id for id, its in self.model.items() if not its.state.is_final}
        if self.model:
            assert allocations(self.folder)["cids"] == cids

    @rule()
    def lose_allocations(self) -> None:
        path = f"{self.folder}/allocations/allocations.json"
        if os.path.exists(path):
            with open(path, "w") as file:
                file.write('{"version": 1')
            self.next_port = 9000

    @rule(tables=st.sampled_from([{"names": {}}, {"cids": {}}, {"cids": {}, "names": {}}]))
    def have_a_wrong_index(self, tables: dict[str, object]) -> None:
        path = f"{self.folder}/allocations/allocations.json"
        self.clean()
        if os.path.exists(path):
            with open(path) as file:
                whole = json.load(file)
            with open(path, "w") as file:
                json.dump({**whole, **tables}, file)
            self.clean()

    @rule(id=ids)
    def lose_a_record(self, id: str) -> None:
        if id in self.model:
            with open(self.store.path(id, "state.json"), "w") as file:
                file.write("{")
            if self.model[id].is_alive:  # its process writes it anew, as it last knew it
                self.owners[id].update(id)
            else:
                assert id not in {record.id for record in self.store.list()}
                del self.model[id]

    @invariant()
    def is_as_the_model(self) -> None:
        found = {
            record.id: _Model(
                record.name, record.state, record.cid, record.ports, self.store.is_alive(record.id)
            )
            for record in self.store.list()
        }
        assert found == self.model
        live = self.live()
        assert len({its.cid for its in live}) == len(live)


TestStoreModel = pytest.mark.slow(StoreModel.TestCase)
TestStoreModel.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
