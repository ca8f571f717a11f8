"""The control plane, as a bare client sees it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

import pytest

from tests.unit.serve.conftest import DEADLINE_S, ROOT, Box, StandIn, wait_until

pytestmark = pytest.mark.slow


def test_what_a_created_sandbox_is(box: Box) -> None:
    assert box.made["templateID"] == "base" and box.made["envdVersion"] == "0.6.13"
    assert box.id.isalnum() and len(box.token or "") == 64
    info = box.server.api("GET", f"/sandboxes/{box.id}").json
    assert info["state"] == "running" and info["metadata"] == {"of": "all tests"}
    assert info["lifecycle"] == {"onTimeout": "kill", "autoResume": False}
    # As SDKs before 2 call it.
    assert box.server.api("GET", f"/sandboxes/{box.id}-client").status == 200


@pytest.mark.parametrize("key", ["", "e2b_" + 40 * "0", "x" * 5000, "é"])
def test_wrong_keys(server: StandIn, key: str) -> None:
    answer = server.request(
        "GET", "/v2/sandboxes", None, {"X-API-KEY": key.encode().decode("latin-1")}
    )
    assert answer.status == 401 and answer.json["code"] == 401 and answer.json["message"]


def test_a_key_sees_its_own_sandboxes_only(server: StandIn, box: Box) -> None:
    other = server.add_key("other", "run")
    assert server.api("GET", "/v2/sandboxes", key=other).json == []
    for method, path in (
        ("GET", f"/sandboxes/{box.id}"), ("DELETE", f"/sandboxes/{box.id}"),
        ("POST", f"/sandboxes/{box.id}/pause"), ("POST", f"/sandboxes/{box.id}/connect"),
        ("POST", f"/sandboxes/{box.id}/fork"), ("POST", f"/sandboxes/{box.id}/snapshots"),
        ("GET", f"/sandboxes/{box.id}/logs"), ("GET", f"/sandboxes/{box.id}/metrics"),
    ):  # fmt: skip
        answer = server.api(method, path, {} if method == "POST" else None, key=other)
        assert (answer.status, answer.json["code"]) == (404, 404), path
    assert box.id in _ids(server, server.add_key("boss", "admin"))


def test_a_state_folder_has_one_server(server: StandIn) -> None:
    command = [*server.command, server.where, "127.0.0.1:0", "{}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode != 0 and "another voidbox serve has" in done.stderr
    assert server.api("GET", "/v2/sandboxes").status == 200


def test_scopes(server: StandIn, box: Box) -> None:
    reader = server.add_key("reader", "read")
    assert server.api("GET", "/v2/sandboxes", key=reader).status == 200
    assert server.api("POST", "/v2/sandboxes", {"templateID": "base"}, reader).status == 403
    assert server.api("GET", "/metrics").status == 403
    text = server.api("GET", "/metrics", key=server.add_key("prometheus", "admin")).body.decode()
    assert 'voidbox_sandboxes{state="running"} ' in text
    assert "# TYPE voidbox_request_seconds histogram" in text
    # What Grafana's dashboard asks for is there.
    asked = (ROOT / "scripts" / "serve" / "grafana.json").read_text()
    names = set(re.findall(r"\b(?:voidbox|process)_[a-z_]+", asked)) - {"process_cpu_seconds"}
    assert len(names) > 8 and not [name for name in names if f"{name}" not in text]


def _ids(server: StandIn, key: str | None = None, query: str = "") -> list[str]:
    answer = server.api("GET", f"/v2/sandboxes{query}", key=key)
    assert answer.status == 200, answer
    return [one["sandboxID"] for one in answer.json]


def test_pages_states_and_metadata(server: StandIn, box: Box) -> None:
    key = server.add_key("lister", "run")
    boxes = [server.create(key, metadata={"n": str(n), "a=b&": "ü %"}) for n in range(3)]
    newest_first = [one.id for one in reversed(boxes)]
    assert _ids(server, key) == newest_first
    assert _ids(server, key, "?order=asc") == newest_first[::-1]
    first = server.api("GET", "/v2/sandboxes?limit=2", key=key)
    token = first.headers["x-next-token"]
    second = server.api("GET", f"/v2/sandboxes?limit=2&nextToken={token}", key=key)
    assert [one["sandboxID"] for one in first.json + second.json] == newest_first
    assert "x-next-token" not in second.headers
    # As the SDKs write it: each word is encoded, then the form, then the query.
    wanted = urlencode({quote("n"): quote("1"), quote("a=b&"): quote("ü %")})
    assert _ids(server, key, "?" + urlencode({"metadata": wanted})) == [boxes[1].id]
    assert _ids(server, key, "?state=paused") == []
    assert server.api("GET", "/v2/sandboxes?state=odd", key=key).status == 400
    assert server.api("GET", "/v2/sandboxes?limit=0", key=key).status == 400
    assert server.api("GET", "/v2/sandboxes?nextToken=%00", key=key).status == 400
    assert len(server.api("GET", "/sandboxes", key=key).json) == 3
    for one in boxes:
        assert server.api("DELETE", f"/sandboxes/{one.id}", key=key).status == 204
    assert server.api("DELETE", f"/sandboxes/{boxes[0].id}", key=key).status == 404


def test_a_repeated_creation_is_one(server: StandIn) -> None:
    headers = {"X-API-KEY": server.key, "Idempotency-Key": "once"}
    body = json.dumps({"templateID": "base"}).encode()
    answers = [server.request("POST", "/v2/sandboxes", body, headers) for _ in range(2)]
    assert [answer.status for answer in answers] == [201, 201]
    assert answers[0].json == answers[1].json
    assert server.api("DELETE", f"/sandboxes/{answers[0].json['sandboxID']}").status == 204


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"templateID": "no-such"}, 404),
        ({}, 400),
        ({"templateID": 1}, 400),
        ({"templateID": "base", "timeout": 0}, 400),
        ({"templateID": "base", "timeout": -1}, 400),
        ({"templateID": "base", "timeout": 1e9}, 400),
        ({"templateID": "base", "timeout": "soon"}, 400),
        ({"templateID": "base", "metadata": {"a": 1}}, 400),
        ({"templateID": "base", "metadata": {"voidbox.serve": "{}"}}, 400),
        ({"templateID": "base", "envVars": {"A=B": "x"}}, 400),
        ({"templateID": "base", "volumeMounts": [{"name": "a", "path": "/a"}]}, 501),
        ({"templateID": "base", "mcp": {"a": {}}}, 501),
        ({"templateID": "base", "autoPauseMemory": False}, 501),
        ({"templateID": "base", "somethingNew": {"on": True}}, 501),
        ({"templateID": "base", "network": {"egressProxy": {"url": "x"}}}, 501),
        ({"templateID": "base", "network": {"rules": {"x": 1}}}, 501),
        ({"templateID": "base", "network": {"denyOut": ["example.com"]}}, 400),
        ({"templateID": "base", "network": {"allowOut": ["example.com"]}}, 400),
        ({"templateID": "base", "network": {"allowOut": ["1.1.1.1"], "denyOut": ["1.0.0.0/8"]}},
         501),
        ([], 400),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(server: StandIn, fields: object, status: int) -> None:
    before = server.records()
    answer = server.api("POST", "/v2/sandboxes", fields)
    assert (answer.status, answer.json["code"]) == (status, status), answer
    assert answer.json["message"] and server.records() == before


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff", b"[" * 100_000, b"{}" + b" " * (1 << 21)],
)
def test_bodies_that_are_none(server: StandIn, body: bytes) -> None:
    answer = server.request("POST", "/v2/sandboxes", body, {"X-API-KEY": server.key})
    assert answer.status == (413 if len(body) > 1 << 20 else 400)
    assert answer.json["code"] == answer.status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/volumes", 501), ("POST", "/secrets", 501), ("GET", "/volumes/x", 501),
        ("GET", "/no/such", 404), ("PATCH", "/sandboxes", 405),
        ("GET", "/sandboxes/../../etc/passwd", 404), ("GET", "/sandboxes/%2e%2e%2fx", 404),
        ("GET", "/sandboxes/nosuch", 404),
    ],
)  # fmt: skip
def test_what_is_not_there(server: StandIn, method: str, path: str, status: int) -> None:
    answer = server.api(method, path)
    assert (answer.status, answer.json["code"]) == (status, status)


def test_timeouts(server: StandIn) -> None:
    box = server.create(timeout=300)

    def end_at() -> str:
        return str(server.api("GET", f"/sandboxes/{box.id}").json["endAt"])

    first = end_at()
    # connect() extends, and never shortens.
    assert server.api("POST", f"/v2/sandboxes/{box.id}/connect", {"timeout": 10}).status == 200
    assert end_at() == first
    assert server.api("POST", f"/sandboxes/{box.id}/connect", {"timeout": 900}).status == 200
    longer = end_at()
    assert longer > first
    assert server.api("POST", f"/sandboxes/{box.id}/refreshes", {"duration": 5}).status == 204
    assert end_at() == longer
    assert server.api("POST", f"/sandboxes/{box.id}/timeout", {"timeout": 0}).status == 400
    assert server.api("POST", f"/sandboxes/{box.id}/resume", {}).status == 409
    assert server.api("POST", f"/sandboxes/{box.id}/timeout", {"timeout": 1}).status == 204
    wait_until(lambda: server.api("GET", f"/sandboxes/{box.id}").status == 404, "its time is over")
    wait_until(lambda: box.id not in server.records(), "nothing of it is left")
    answer = server.request("GET", "/health", None, box.headers())
    assert answer.status == 502 and "was not found" in answer.json["message"]


def test_pause_and_resume(server: StandIn) -> None:
    box = server.create(timeout=300)
    assert server.api("POST", f"/sandboxes/{box.id}/pause", {"memory": False}).status == 501
    assert server.api("POST", f"/sandboxes/{box.id}/pause").status == 204
    assert server.api("POST", f"/sandboxes/{box.id}/pause").status == 409
    assert server.api("GET", f"/sandboxes/{box.id}").json["state"] == "paused"
    assert _ids(server, None, "?state=paused") == [box.id]
    assert server.request("GET", "/health", None, box.headers()).status == 502
    assert server.api("POST", f"/sandboxes/{box.id}/timeout", {"timeout": 9}).status == 409
    answer = server.api("POST", f"/v2/sandboxes/{box.id}/connect", {"timeout": 300})
    assert answer.status == 201 and answer.json["envdAccessToken"] == box.token
    assert box.run("/bin/echo", "again")[0] == b"again\n"
    assert server.api("POST", f"/sandboxes/{box.id}/pause").status == 204
    assert server.api("DELETE", f"/sandboxes/{box.id}").status == 204
    assert box.id not in server.records()


def test_a_pause_in_place_of_an_end_and_a_request_that_wakes(server: StandIn) -> None:
    box = server.create(timeout=1, autoPause=True, autoResume={"enabled": True})

    def state() -> str:
        answer = server.api("GET", f"/sandboxes/{box.id}")
        assert answer.status == 200, (answer, server.log.read_text()[-3000:])
        return str(answer.json["state"])

    wait_until(lambda: state() == "paused", "it is paused in time")
    assert server.request("GET", "/health", None, box.headers()).status == 204
    assert state() == "running"
    box.kill()


def test_snapshots_and_forks(server: StandIn) -> None:
    key = server.add_key("copier", "run")
    box = server.create(key, metadata={"is": "original"})
    made = server.api("POST", f"/sandboxes/{box.id}/snapshots", {"name": "saved"}, key)
    assert made.status == 201
    assert made.json == {"snapshotID": "saved:default", "names": ["saved"]}
    assert server.api("GET", "/snapshots", key=key).json == [made.json]
    assert server.api("GET", "/snapshots").json == []  # another key's
    assert server.api("POST", "/v2/sandboxes", {"templateID": "saved"}).status == 404
    copy = server.create(key, templateID="saved:default", metadata={"is": "copy"})
    info = server.api("GET", f"/sandboxes/{copy.id}", key=key).json
    assert info["metadata"] == {"is": "copy"} and info["templateID"] == "saved:default"
    forks = server.api("POST", f"/sandboxes/{box.id}/fork", {"count": 2, "timeout": 60}, key)
    assert forks.status == 201
    ids = [one["sandbox"]["sandboxID"] for one in forks.json]
    assert len({*ids, box.id, copy.id}) == 4 and {*ids} < {*_ids(server, key)}
    assert server.api("DELETE", "/templates/saved%3Adefault").status == 404  # another key's
    assert server.api("DELETE", "/templates/saved%3Adefault", key=key).status == 204
    assert server.api("DELETE", "/templates/saved%3Adefault", key=key).status == 404
    for sandbox_id in (*ids, box.id, copy.id):
        assert server.api("DELETE", f"/sandboxes/{sandbox_id}", key=key).status == 204


def test_metrics_logs_and_templates(server: StandIn, box: Box) -> None:
    now = time.time()
    found = server.api("GET", f"/sandboxes/{box.id}/metrics").json
    assert found and abs(found[-1]["timestampUnix"] - now) < 3600
    assert found[-1]["memTotal"] > found[-1]["memUsed"] > 0 and found[-1]["cpuCount"] > 0
    assert server.api("GET", f"/sandboxes/{box.id}/metrics?end=5").json == []
    logs = server.api("GET", f"/sandboxes/{box.id}/logs").json
    assert logs["logs"][0]["line"] == "the guest boots"
    assert server.api("GET", f"/v2/sandboxes/{box.id}/logs").json["logs"] == logs["logEntries"]
    names = [name for one in server.api("GET", "/v2/templates").json for name in one["names"]]
    assert "base" in names
    assert server.api("GET", "/templates/aliases/base").status == 200
    assert server.api("GET", "/templates/aliases/none").status == 404


@pytest.mark.parametrize("skew_s", [-86400, 86400])
def test_a_client_whose_clock_is_wrong(server: StandIn, box: Box, skew_s: int) -> None:
    """It gets what is in its range, or nothing; what has no times of its own is not affected."""
    now = int(time.time()) + skew_s
    range_of = f"start={now - 60}&end={now + 60}"
    assert server.api("GET", f"/sandboxes/{box.id}/metrics?{range_of}").json == []
    after = datetime.fromtimestamp(now, UTC).isoformat().replace("+", "%2B")
    found = server.api("GET", f"/v2/sandboxes?startedAfter={after}").json
    assert (box.id in [one["sandboxID"] for one in found]) == (skew_s < 0)
    assert server.api("POST", f"/sandboxes/{box.id}/timeout", {"timeout": 600}).status == 204
    end = datetime.fromisoformat(server.api("GET", f"/sandboxes/{box.id}").json["endAt"])
    assert 500 < end.timestamp() - time.time() < 700


def test_no_more_than_may_be(server: StandIn) -> None:
    boxes = []
    while True:
        answer = server.api("POST", "/v2/sandboxes", {"templateID": "base"})
        if answer.status != 201:
            break
        boxes.append(Box(server, answer.json))
        assert len(boxes) <= 12
    assert answer.status == 503 and answer.headers["should-retry"] == "false"
    for one in boxes:
        one.kill()


def test_request_ids_and_the_log(server: StandIn, box: Box) -> None:
    headers = {"X-API-KEY": server.key, "X-Request-Id": "mine-1", "User-Agent": "some-sdk/1.2"}
    assert server.request("GET", "/templates", None, headers).headers["x-request-id"] == "mine-1"
    odd = server.request("GET", "/templates", None, {**headers, "X-Request-Id": '"; x'})
    assert odd.headers["x-request-id"].isalnum()
    path = f"/files?path=x&signature=v1_secret&username=u{box.id}"
    assert server.request("GET", path, None).status == 401
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line[0] == "{"]
    mine = next(line for line in lines if line["request"] == "mine-1")
    assert (mine["key"], mine["sdk"], mine["status"]) == ("main", "some-sdk/1.2", 200)
    assert "v1_secret" not in server.log.read_text() and server.key not in server.log.read_text()
