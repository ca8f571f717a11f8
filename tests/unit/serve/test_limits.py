"""No more sandboxes run than may, however they are asked for; what is refused loses nothing."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.serve.conftest import Answer, Box, StandIn, wait_until
from tests.unit.serve.test_builds import new, start, step, wait

pytestmark = pytest.mark.slow

_MAX, _WAITING = 4, 1


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        server = StandIn(Path(folder), {"sandboxes_max": _MAX, "waiting": _WAITING})
        try:
            yield server
            assert "Traceback" not in server.log.read_text()
        finally:
            server.close()


def at_once(count: int, ask: Callable[[int], Answer]) -> list[Answer]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(ask, range(count)))


def statuses(answers: list[Answer]) -> Counter[int]:
    for answer in answers:
        if answer.status == 503:
            assert (
                answer.headers["should-retry"] == "false"
                and "--max-sandboxes" in answer.json["message"]
            )
    return Counter(answer.status for answer in answers)


def mine(server: StandIn) -> list[str]:
    return [one["sandboxID"] for one in server.api("GET", "/v2/sandboxes").json]


def end_all(server: StandIn) -> None:
    for sandbox_id in mine(server):
        assert server.api("DELETE", f"/sandboxes/{sandbox_id}").status == 204
    wait_until(lambda: len(server.records()) <= _WAITING, "only those that wait are left")


def test_many_creates_where_few_wait(server: StandIn) -> None:
    def create(number: int) -> Answer:
        wish = {"templateID": "base", "envVars": {"N": str(number)}}
        return server.api("POST", "/v2/sandboxes", wish)

    for _ in range(2):  # what was refused has taken no place
        answers = at_once(4 * _MAX, create)
        assert statuses(answers) == {201: _MAX, 503: 3 * _MAX}
        for number, answer in enumerate(answers):
            if answer.status == 201:
                output, _ = Box(server, answer.json).run("/bin/sh", "-c", "echo $N")
                assert output == f"{number}\n".encode()  # each has what was asked for
        assert len(mine(server)) == _MAX
        end_all(server)


def test_forks_at_once(server: StandIn) -> None:
    box = server.create()
    answers = at_once(
        4, lambda number: server.api("POST", f"/sandboxes/{box.id}/fork", {"count": 2})
    )
    assert statuses(answers) == {201: 1, 503: 3}
    assert len(mine(server)) == 3
    end_all(server)


def test_what_is_paused_takes_no_place_and_needs_one_to_go_on(server: StandIn) -> None:
    paused = [server.create(autoResume={"enabled": True}) for _ in range(_MAX)]
    for box in paused:
        assert server.api("POST", f"/sandboxes/{box.id}/pause").status == 204
    running = [server.create() for _ in range(_MAX - 1)]
    connects = at_once(
        _MAX,
        lambda number: server.api("POST", f"/v2/sandboxes/{paused[number].id}/connect", {}),
    )
    assert statuses(connects) == {201: 1, 503: _MAX - 1}
    awake = next(box for box, answer in zip(paused, connects, strict=True) if answer.status == 201)
    still = next(box for box, answer in zip(paused, connects, strict=True) if answer.status == 503)
    # Nor does a request wake it; it says why, and what is paused is not lost.
    assert still.call("/filesystem.Filesystem/Stat", {"path": "/"}).status == 503
    running[0].kill()
    assert still.call("/filesystem.Filesystem/Stat", {"path": "/"}).status == 200
    assert awake.run("/bin/sh", "-c", "echo here")[0] == b"here\n"
    end_all(server)


def test_a_build_needs_a_place(server: StandIn) -> None:
    boxes = [server.create() for _ in range(_MAX)]
    made = new(server, "late")
    assert start(server, made, steps=[step("RUN", "true")]).status == 202
    found = wait(server, made)
    assert found["status"] == "error" and "--max-sandboxes" in found["reason"]["message"]
    boxes[0].kill()
    made = new(server, "late")
    assert start(server, made, steps=[step("RUN", "true")]).status == 202
    assert wait(server, made)["status"] == "ready"
    end_all(server)


def test_a_build_that_says_too_much(server: StandIn) -> None:
    """Its log is bounded, and so is what the server holds; its end is there."""
    made = new(server, "chatty")
    line = "x" * 1000
    many = f"yes {line} | head -c 50000000; echo the last words"
    steps = [step("RUN", many), step("RUN", "exit 3")]
    assert start(server, made, steps=steps).status == 202
    found = wait(server, made)
    assert found["status"] == "error" and "exit code 3" in found["reason"]["message"]
    path = f"/templates/chatty/builds/{made['buildID']}/status?logsOffset="
    entries, offset = [], 0
    while page := server.api("GET", f"{path}{offset}").json["logEntries"]:
        entries += page
        offset += len(page)
    assert sum(len(one["message"]) for one in entries) < 2 << 20
    assert "what follows is not kept" in [one["message"] for one in entries]
    assert entries[-1]["level"] == "error" and "exit code 3" in entries[-1]["message"]
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    assert int(peak.split()[1]) << 10 < 300 << 20
