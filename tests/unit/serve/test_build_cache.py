"""What template builds keep of their steps, tags, and what a server that is killed leaves."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.serve.conftest import Box, StandIn, wait_until
from tests.unit.serve.test_builds import HASH, archive, new, start, step, upload, wait
from voidbox.serve.builds.cache import chain, reusable
from voidbox.serve.builds.plan import Step
from voidbox.serve.database import Database
from voidbox.serve.tags import Tags


@contextmanager
def serving(**settings: object) -> Iterator[StandIn]:
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        server = StandIn(Path(folder), settings)
        try:
            yield server
            assert "Traceback" not in server.log.read_text()
        finally:
            server.close()


def build(server: StandIn, name: str, *steps: dict[str, object], **fields: Any) -> list[str]:
    """Build a template; return which steps were taken from an earlier time."""
    tags = {"tags": fields.pop("tags")} if "tags" in fields else {}
    made = new(server, name, **tags)
    assert start(server, made, steps=list(steps), **fields).status == 202
    found = wait(server, made)
    assert found["status"] == "ready", found
    words = [one["message"] for one in found["logEntries"]]
    return [word.removeprefix("CACHED ") for word in words if word.startswith("CACHED ")]


def count(file: Path) -> int:
    return len(file.read_text().splitlines())


def snapshots(server: StandIn) -> set[str]:
    try:
        return {one.name for one in (server.folder / "state" / "snapshots").iterdir()}
    except FileNotFoundError:
        return set()


def rows(server: StandIn, query: str) -> list[Any]:
    with closing(sqlite3.connect(server.folder / "state" / "serve.sqlite")) as connection:
        return connection.execute(query).fetchall()


def test_a_hash_says_all_that_a_step_came_from() -> None:
    steps = [Step("RUN", ("a",)), Step("ENV", ("A", "1")), Step("COPY", ("x", "/"), "h")]
    found = chain("base", steps)
    assert len(set(found)) == 3 and found == chain("base", steps)
    assert chain("base", steps[:2]) == found[:2]
    assert not set(chain("other", steps)) & set(found)
    changed = [steps[0], Step("ENV", ("A", "2")), steps[2]]
    assert chain("base", changed)[0] == found[0] and not set(chain("base", changed)[1:]) & set(
        found
    )
    assert chain("base", [*steps[:2], steps[2]._replace(files_hash="i")])[2] != found[2]
    # Words that look alike when they are put together are others.
    assert chain("b", [Step("RUN", ("a", "b"))]) != chain("b", [Step("RUN", ("a b",))])
    assert chain("b", [Step("RUN", ("\ud800",))]) != chain("b", [Step("RUN", ("\ud801",))])
    # That one is to be run says nothing of what it leaves.
    assert chain("b", [steps[0]._replace(is_forced=True)]) == chain("b", steps[:1])


def test_steps_up_to_the_first_that_is_forced_may_be_known() -> None:
    steps = [Step("RUN", ("a",)), Step("RUN", ("b",), is_forced=True), Step("RUN", ("c",))]
    assert (reusable(steps), reusable(steps[:1]), reusable([])) == (1, 1, 0)


def test_templates_of_an_older_server_get_a_tag(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "serve.sqlite")) as connection:
        connection.execute("CREATE TABLE templates (key, name, snapshot)")
        connection.execute("INSERT INTO templates VALUES ('k', 'mine', 'abcdef012345')")
        connection.execute("PRAGMA user_version=2")
        connection.commit()
    for _ in range(2):
        database = Database(str(tmp_path))
        (found,) = Tags(database).of("k", "mine")
        assert (found.tag, found.snapshot) == ("default", "abcdef012345")
        database.close()


@pytest.mark.slow
def test_what_did_not_change_is_not_run_again(tmp_path: Path) -> None:
    first, second, copied = (tmp_path / name for name in ("first", "second", "copied"))
    one = step("RUN", f"echo run >> {first}")
    two = step("RUN", f"echo $COLOUR >> {second}")
    copy = step("COPY", "note", f"{copied}", "", "", filesHash=HASH)
    blue, red = step("ENV", "COLOUR", "blue"), step("ENV", "COLOUR", "red")
    steps = [step("WORKDIR", str(tmp_path)), one, blue, copy, two]
    with serving() as server:
        assert upload(server, new(server, "mine"), archive(note="n")).status == 200
        assert build(server, "mine", *steps) == []
        copied.unlink()
        # All is there, the copied file too: nothing is done.
        taken = build(server, "mine", *steps)
        assert len(taken) == len(steps) and count(first) == count(second) == 1
        assert not copied.exists()
        box = server.create(templateID="mine")
        words = f"{tmp_path} blue\n".encode()
        assert box.run("/bin/sh", "-c", "echo $(pwd) $COLOUR")[0] == words
        box.kill()
        # From what has changed on all is done.
        taken = build(server, "mine", steps[0], one, red, copy, two)
        assert taken == [f"WORKDIR {tmp_path}", f"RUN echo run >> {first}"]
        assert (count(first), count(second)) == (1, 2) and copied.exists()
        # An earlier one is known still, also under another name.
        assert len(build(server, "other", *steps)) == len(steps)
        # Who wants it done has it done: from one step on, or from the beginning.
        forced = {**two, "force": True}
        assert len(build(server, "mine", *steps[:4], forced)) == 4 and count(second) == 3
        assert build(server, "mine", *steps, force=True) == []
        assert (count(first), count(second)) == (2, 4)
        assert len(build(server, "mine", *steps)) == len(steps)
        # What somebody has removed is done again.
        for (id,) in rows(server, "SELECT snapshot FROM layers"):
            (server.folder / "state" / "snapshots" / id).rename(tmp_path / id)
        assert build(server, "mine", *steps) == [] and count(first) == 3
        # Layers are no templates, and nobody's snapshots.
        assert server.api("GET", "/snapshots").json == []
        (id, *_) = (row[0] for row in rows(server, "SELECT snapshot FROM layers"))
        assert server.api("POST", "/v2/sandboxes", {"templateID": id}).status == 404
        assert server.api("DELETE", f"/templates/{id}").status == 404
        assert server.records() == []


@pytest.mark.slow
def test_another_keys_steps_are_not_known(tmp_path: Path) -> None:
    file = tmp_path / "runs"
    with serving() as server:
        one = step("RUN", f"echo run >> {file}")
        build(server, "mine", one)
        server.key = server.add_key("other", "run")
        assert build(server, "mine", one) == [] and count(file) == 2


@pytest.mark.slow
def test_a_template_goes_on_from_one_that_was_built(tmp_path: Path) -> None:
    with serving() as server:
        steps = [step("ENV", "A", "1"), step("WORKDIR", str(tmp_path)), step("USER", "root")]
        build(server, "lower", *steps)
        runs = step("RUN", "echo $A $(pwd) $(whoami) > found")
        more = [runs, step("WORKDIR", "inner"), step("ENV", "B", "2")]
        build(server, "upper", *more, fromTemplate="lower")
        assert (tmp_path / "found").read_text() == f"1 {tmp_path} root\n"
        taken = build(server, "upper", *more, fromTemplate="lower")
        assert taken == ["RUN echo $A $(pwd) $(whoami) > found"]
        box = server.create(templateID="upper")
        found = box.run("/bin/sh", "-c", "echo $A $B $(pwd) $(whoami)")[0]
        assert found == f"1 2 {tmp_path}/inner root\n".encode()
        box.kill()
        build(server, "lower", *steps, step("RUN", "true"))
        assert build(server, "upper", *more, fromTemplate="lower") == []  # it is another one now


@pytest.mark.slow
def test_the_disk_that_layers_take_is_bounded() -> None:
    with serving() as server:
        build(server, "one", step("RUN", "true"))
        ((size,),) = rows(server, "SELECT bytes FROM layers")
        server.stop()
        server._settings["build_cache_bytes"] = 3 * size + size // 2
        server.start()
        steps = [step("RUN", f"echo {number}") for number in range(6)]
        build(server, "many", *steps)
        layers = {row[0] for row in rows(server, "SELECT snapshot FROM layers")}
        assert len(layers) == 3
        tagged = {row[0] for row in rows(server, "SELECT snapshot FROM tags")}
        assert snapshots(server) == layers | tagged
        assert len(build(server, "many", *steps)) == 6  # the newest are there
        server.stop()
        server._settings["build_cache_bytes"] = 0
        server.start()
        assert rows(server, "SELECT * FROM layers") == []
        assert build(server, "many", *steps) == []
        assert snapshots(server) == {row[0] for row in rows(server, "SELECT snapshot FROM tags")}


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_nothing_of_a_build(tmp_path: Path) -> None:
    first, waits = tmp_path / "first", tmp_path / "waits"
    one = step("RUN", f"echo run >> {first}")
    with serving() as server:
        build(server, "mine", step("ENV", "A", "old"))
        made = new(server, "mine")
        slow = step("RUN", f"touch {waits}; sleep 1000")
        assert start(server, made, steps=[one, slow]).status == 202
        wait_until(waits.exists, "the second step runs")
        assert len(server.records()) == 1
        box = server.create()
        before = snapshots(server)
        server.kill()
        stray = server.folder / "state" / "snapshots"
        _copy_of_a_layer(stray, before)
        server.start()
        wait_until(lambda: server.records() == [box.id], "the build's sandbox ends")
        assert snapshots(server) == before
        status = f"/templates/mine/builds/{made['buildID']}/status"
        assert server.api("GET", status).status == 404
        # What the template was before it is; and what was done need not be done again.
        old = server.create(templateID="mine")
        assert old.run("/bin/sh", "-c", "echo $A")[0] == b"old\n"
        assert build(server, "mine", one) == [f"RUN echo run >> {first}"] and count(first) == 1
        old.kill()
        box.kill()


def _copy_of_a_layer(folder: Path, among: set[str]) -> None:
    """Leave what a server leaves that is killed before it could note a layer."""
    for name in among:
        record = json.loads((folder / name / "snapshot.json").read_text())
        stray = folder / "0123456789ab"
        if not stray.exists():
            stray.mkdir()
            for file in (folder / name).iterdir():
                (stray / file.name).write_bytes(file.read_bytes())
            (stray / "snapshot.json").write_text(json.dumps({**record, "id": stray.name}))


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose result cannot be kept counts; a template that cannot be kept does not."""
    file = tmp_path / "runs"
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "full")
    with serving() as server:
        made = new(server, "mine")
        steps = [step("RUN", f"echo run >> {file}"), step("RUN", f"echo more >> {file}")]
        assert start(server, made, steps=steps).status == 202
        found = wait(server, made)
        assert found["status"] == "error" and "No space left" in found["reason"]["message"]
        warned = [one["message"] for one in found["logEntries"] if one["level"] == "warn"]
        assert len(warned) == 2 and all("do this step again: " in text for text in warned), warned
        assert file.read_text() == "run\nmore\n"
        assert snapshots(server) == set() and server.records() == []
        assert server.api("GET", "/templates/aliases/mine").status == 404


@pytest.mark.slow
def test_tags() -> None:
    def env_of(name: str) -> bytes | int:
        answer = server.api("POST", "/v2/sandboxes", {"templateID": name})
        if answer.status != 201:
            return answer.status
        box = Box(server, answer.json)
        found = box.run("/bin/sh", "-c", "echo $A")[0]
        box.kill()
        return found

    def tag(target: str, *tags: object) -> Any:
        return server.api("POST", "/templates/tags", {"target": target, "tags": list(tags)})

    def untag(name: str, *tags: str) -> int:
        return server.api("DELETE", "/templates/tags", {"name": name, "tags": list(tags)}).status

    with serving() as server:
        build(server, "app:v1", step("ENV", "A", "1"))
        assert env_of("app") == 404 and env_of("app:v1") == b"1\n"
        build(server, "app", step("ENV", "A", "2"), tags=["V2", "best"])
        assert (env_of("app:v2"), env_of("app:best"), env_of("app:v1")) == (b"2\n", b"2\n", b"1\n")
        assert tag("app:v1", "default", "best").json["tags"] == ["default", "best"]
        assert (env_of("app"), env_of("app:best"), env_of("app:v2")) == (b"1\n", b"1\n", b"2\n")
        told = {one["tag"]: one for one in server.api("GET", "/templates/app/tags").json}
        assert set(told) == {"v1", "v2", "best", "default"}
        assert told["v1"]["buildID"] == told["best"]["buildID"] != told["v2"]["buildID"]
        assert all(one["createdAt"].endswith("Z") for one in told.values())
        listed = [one["templateID"] for one in server.api("GET", "/templates").json]
        assert {"app:v2"} < set(listed) and sum(one.startswith("app") for one in listed) == 2
        # What goes wrong.
        assert tag("app:none", "x").status == 404 and tag("none", "x").status == 404
        assert tag("base", "x").status == 404
        assert tag("app:v1").status == 400 and tag("app:v1", "a b").status == 400
        assert tag("app:v1", 1).status == 400
        assert tag("app:v1", *(f"t{number}" for number in range(101))).status == 400
        assert untag("app", "none") == 404 and untag("app", "v1", "none") == 404
        assert untag("none", "x") == 404 and untag("app") == 400
        other = server.add_key("other", "run")
        assert server.api("GET", "/templates/app/tags", key=other).status == 404
        reader = server.add_key("reader", "read")
        wish = {"target": "app:v1", "tags": ["x"]}
        assert server.api("POST", "/templates/tags", wish, reader).status == 403
        # A build goes with its last tag; the template with its last build.
        build_count = len(snapshots(server))
        assert untag("app", "v2") == 204 and len(snapshots(server)) == build_count - 1
        assert env_of("app:v2") == 404 and env_of("app:v1") == b"1\n"
        assert server.api("DELETE", "/templates/app:v1").status == 204
        assert env_of("app:v1") == 404 and env_of("app") == b"1\n"
        assert server.api("DELETE", "/templates/app").status == 204
        assert env_of("app") == 404 and server.api("GET", "/templates/app/tags").status == 404
        assert snapshots(server) == {row[0] for row in rows(server, "SELECT snapshot FROM layers")}
