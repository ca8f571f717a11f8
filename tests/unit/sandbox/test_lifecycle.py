"""The table of states, all of it."""

from __future__ import annotations

import itertools

import pytest

from voidbox.errors import ConfigError
from voidbox.sandbox.state.lifecycle import Event, State, step

# A row a state: what each event makes of it, in the order of Event; - for what cannot happen.
_TABLE = """
             boot      pause     resume    suspend   wake      stop      end       fail
creating     running   -         -         suspended -         stopping  stopped   crashed
running      -         paused    -         suspended -         stopping  stopped   crashed
paused       -         -         running   suspended -         stopping  stopped   crashed
suspended    -         -         -         -         creating  -         stopped   crashed
stopping     -         -         -         -         -         stopping  stopped   crashed
stopped      -         -         -         -         -         -         -         -
crashed      -         -         -         -         -         -         -         -
"""
TABLE = {line.split()[0]: line.split()[1:] for line in _TABLE.splitlines()[2:]}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_event_in_every_state(state: State, event: Event) -> None:
    expected = TABLE[state.value][list(Event).index(event)]
    if expected != "-":
        assert step(state, event) is State(expected)
    else:
        with pytest.raises(ConfigError, match=f"a sandbox that is {state.value} cannot "):
            step(state, event)


def test_what_has_ended_stays_so() -> None:
    assert [state for state in State if not state.has_process] == [
        State.SUSPENDED,
        State.STOPPED,
        State.CRASHED,
    ]
    assert [state for state in State if state.is_final] == [State.STOPPED, State.CRASHED]
    with pytest.raises(ConfigError, match="^a sandbox that is stopped cannot be paused$"):
        step(State.STOPPED, Event.PAUSE)
