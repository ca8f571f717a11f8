"""A sandbox whose processes a zygote has forked: what they need is there."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import tiny
from voidbox.errors import AgentError
from voidbox.sandbox.child_environment import environment
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.launch import OWNER, launch, wait_ended
from voidbox.sandbox.process import recipe, restoring
from voidbox.sandbox.root import Root, make_upper
from voidbox.sandbox.snapshots import record as records
from voidbox.sandbox.snapshots import rests_on
from voidbox.sandbox.snapshots.record import TEMPLATE, SnapshotRecord
from voidbox.sandbox.snapshots.templates import Templates, key_of
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.zygote.client import Zygote
from voidbox.version import __version__
from voidbox.vmm.machine import Machine

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

LIMIT_S = 60.0
DISK_BYTES = 16 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # pytest's are too long for sockets
        yield Path(name)


def leave_template(store: Store, draft: SandboxRecord) -> None:
    """As a sandbox of this kind leaves it: a machine that has run for a moment."""
    record = store.create(draft)
    upper = store.path(record.id, "machine/disk.img")
    os.mkdir(os.path.dirname(upper))
    make_upper(upper, DISK_BYTES)
    config = recipe.kept_config(store, record)
    key = key_of(record, config)
    assert key is not None
    files = rests_on.files_of(config)
    made = SnapshotRecord(key, "", TEMPLATE, time.time(), "", files, __version__, record)
    extra = {records.FILE: made.encode(), records.SECRET: store.secret(record.id)}
    templates = Templates(store.folder)
    templates.prepare()
    with Machine(restoring.closed(config)._replace(serial_line=True)) as machine:
        machine.start()
        machine.snapshot(templates.place(key), extra=extra)
    store.release(record.id)
    store.remove(record.id)


@pytest.mark.parametrize("is_restored", [False, True], ids=["booted", "restored"])
def test_its_processes_import_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_restored: bool
) -> None:
    """What each imports for itself takes memory that is not shared, and time at each start."""
    (folder / "disk").write_bytes(bytes(1 << 20))
    (folder / "boot").write_bytes(bytes(512))
    kernel = tiny.write_elf(folder / "tiny.elf", tiny.say("x") + tiny.HLT_FOREVER)
    root = Root(str(folder / "boot"), str(folder / "disk"), disk_bytes=DISK_BYTES)
    draft = SandboxRecord("", kernel, root.boot, 64 << 20, 1, {}, {}, net={}, root=root.to_json())
    monkeypatch.setenv("PYTHONVERBOSE", "1")
    with Store(str(folder / "state")) as store, Zygote(OWNER, environment()) as zygote:
        if is_restored:
            leave_template(store, draft)
            record = store.create(draft._replace(is_held=True))
            launch(store, record, zygote=zygote)
            ControlClient(store.path(record.id, "control.sock"), LIMIT_S).request("kill")
        else:
            record = store.create(draft._replace(timeout_s=0.1))
            with pytest.raises(AgentError, match="its time limit ran out"):  # it has no agent
                launch(store, record, zygote=zygote)
        assert wait_ended(store, record.id, LIMIT_S)
        log = Path(store.path(record.id, "owner.log")).read_text()
    assert "the machine is made" in log
    assert [line for line in log.splitlines() if line.startswith("import ")] == []
