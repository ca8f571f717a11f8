"""Records and their form on the disk."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sandbox.states import wanted
from voidbox.errors import ConfigError
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.storage.durable import Corrupted

ID = "0123456789ab"
TEXTS = st.dictionaries(st.text(), st.text(), max_size=3)
WHOLE = wanted("web", id=ID, cid=3)


@pytest.mark.slow
@given(
    envs=TEXTS,
    metadata=TEXTS,
    state=st.sampled_from(State),
    started_at=st.none() | st.floats(0, 1e11),
    timeout_s=st.none() | st.integers(0, 99) | st.floats(0, 1e6),
    ports=st.lists(st.integers(9000, 9999)).map(tuple),
    net=st.none() | st.just({"allow": ["*.example.com"], "rate_bytes_s": None}),
    crash=st.text(),
)
def test_a_record_comes_back(**values: Any) -> None:
    record = WHOLE._replace(**values)
    assert SandboxRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "../../etc"), ("id", 5), ("name", "a/b"), ("state", "asleep"), ("state", None),
        ("state", []), ("envs", {"a": 1}), ("envs", []), ("created_at", "today"),
        ("created_at", True), ("pid", -1), ("pid", 1.0), ("ports", [1.5]), ("ports", 7),
        ("pid", 1 << 31), ("created_at", 1e300), ("ended_at", -1e12), ("paused_at", 1e308),
        ("is_owned", 1), ("net", []), ("crash", None), ("cpus", None), ("user", 0),
    ],
)  # fmt: skip
def test_what_is_no_record(field: str, value: object) -> None:
    with pytest.raises(Corrupted):
        SandboxRecord.from_json(WHOLE.to_json() | {field: value})


@pytest.mark.parametrize("field", ["name", "kernel", "image", "envs", "state", "id"])
def test_what_a_record_must_have(field: str) -> None:
    values = WHOLE.to_json()
    del values[field]
    with pytest.raises(Corrupted):
        SandboxRecord.from_json(values)


def test_what_is_not_known_is_ignored_and_what_is_new_has_its_default() -> None:
    values = WHOLE.to_json() | {"colour": "red"}
    del values["ports"], values["team"]
    assert SandboxRecord.from_json(values) == WHOLE


@pytest.mark.parametrize(
    ("field", "value"),
    [("metadata", {"n": 1}), ("timeout_s", math.nan), ("timeout_s", "5"), ("envs", None)],
)
def test_a_wrong_value_is_refused_before_it_is_written(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"a sandbox's {field} cannot be "):
        wanted(**{field: value}).to_json()
