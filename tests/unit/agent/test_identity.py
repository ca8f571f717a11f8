"""What a copy of a guest changes of itself. The kernel's part: see e2e."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guest_agent import identity as identities
from guest_agent.freezer import Freezer
from guest_agent.identity import Identity


@pytest.fixture
def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Identity:
    monkeypatch.setattr(identities, "_HOSTNAME", str(tmp_path / "hostname"))
    monkeypatch.setattr(identities, "_HOSTS", str(tmp_path / "hosts"))
    (tmp_path / "hosts").write_text("127.0.0.1 localhost voidbox\n# voidboxes\n::1\tlocalhost\n")
    monkeypatch.setattr(identities.socket, "gethostname", lambda: "voidbox")
    monkeypatch.setattr(identities, "_MACHINE_ID", str(tmp_path / "machine-id"))
    monkeypatch.setattr(identities, "GENERATION", str(tmp_path / "run/generation"))
    monkeypatch.setattr(identities.socket, "sethostname", (tmp_path / "set").write_text)
    return Identity()


def test_names_are_written(identity: Identity, tmp_path: Path) -> None:
    (tmp_path / "machine-id").write_text("old\n")
    assert identity.rename("quiet-otter-3fa2", "0f" * 16, "abc") == []
    assert (tmp_path / "set").read_text() == "quiet-otter-3fa2"
    assert (tmp_path / "hostname").read_text() == "quiet-otter-3fa2\n"
    hosts = "127.0.0.1 localhost quiet-otter-3fa2\n# voidboxes\n::1\tlocalhost\n"
    assert (tmp_path / "hosts").read_text() == hosts
    assert (tmp_path / "machine-id").read_text() == "0f" * 16 + "\n"
    assert (tmp_path / "run/generation").read_text() == "abc\n"


def test_random_numbers_are_others_at_once(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is added to the kernel's pool is used after the next reseed, which is asked for."""
    calls: list[tuple[int, bytes]] = []
    monkeypatch.setattr(
        identities.fcntl, "ioctl", lambda fd, request, info=b"": calls.append((request, info))
    )
    identity.reseed(b"e" * 32)
    # <linux/random.h>: RNDADDENTROPY of 256 bits in 32 bytes, then RNDRESEEDCRNG
    assert calls == [(0x40085203, b"\0\1\0\0\x20\0\0\0" + b"e" * 32), (0x5207, b"")]


def test_the_clock_is_the_hosts(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(identities.time, "clock_settime_ns", lambda *call: calls.append(call))
    identity.set_clock(1_700_000_000_000_000_001)
    assert calls == [(identities.time.CLOCK_REALTIME, 1_700_000_000_000_000_001)]


def test_an_image_without_a_machine_id_gets_none(identity: Identity, tmp_path: Path) -> None:
    assert identity.rename(None, "0f" * 16, None) == []
    assert not (tmp_path / "machine-id").exists()


@pytest.mark.parametrize("name", ["", "-", "a b", "a\nb", "a/b", "\N{SNOWMAN}", "a" * 65])
def test_a_name_that_is_none_is_told_and_the_rest_is_done(
    identity: Identity, tmp_path: Path, name: str
) -> None:
    notes = identity.rename(name, None, "abc")
    assert len(notes) == 1 and "no host's name" in notes[0]
    assert (tmp_path / "run/generation").exists()


@pytest.mark.parametrize("machine_id", ["", "0" * 31, "0" * 33, "G" * 32, "0" * 31 + "\n"])
def test_a_machine_id_that_is_none(identity: Identity, tmp_path: Path, machine_id: str) -> None:
    (tmp_path / "machine-id").write_text("old\n")
    assert len(identity.rename(None, machine_id, None)) == 1
    assert (tmp_path / "machine-id").read_text() == "old\n"


def test_a_hostile_root_keeps_nobody(identity: Identity, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "machine-id")
    os.mkfifo(tmp_path / "machine-id.voidbox")
    (tmp_path / "run").write_text("a file where a folder should be")
    assert len(identity.rename(None, "0f" * 16, "abc")) == 1
    assert (tmp_path / "machine-id").read_text() == "0f" * 16 + "\n"


def make_group(path: Path, is_frozen: bool = True) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.freeze").write_text("0")
    (path / "cgroup.procs").write_text("")
    (path / "cgroup.events").write_text(f"populated 1\nfrozen {int(is_frozen)}\n")
    return path


def test_all_groups_freeze_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Freezer, "_is_ready", lambda self: True)
    monkeypatch.setattr("guest_agent.freezer._FROZEN_S", 0.05)
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    one, two = make_group(tmp_path / "docker"), make_group(tmp_path / "voidbox-frozen")
    freezer = Freezer(str(tmp_path))
    assert freezer.freeze()
    assert [(group / "cgroup.freeze").read_text() for group in (one, two)] == ["1", "1"]
    freezer.thaw()
    assert [(group / "cgroup.freeze").read_text() for group in (one, two)] == ["0", "0"]
    make_group(two, is_frozen=False)  # one process waits for a disk, say
    assert not freezer.freeze()
    assert [(group / "cgroup.freeze").read_text() for group in (one, two)] == ["0", "0"]


def test_an_agent_in_a_group_of_its_own_leaves_it_while_that_is_frozen(tmp_path: Path) -> None:
    """Beside the image's init: the group has the commands in it too."""
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "own").write_text("0::/voidbox/agent\n")
    group = make_group(tmp_path / "voidbox")
    own = make_group(group / "agent")
    freezer = Freezer(str(tmp_path), str(tmp_path / "own"))
    assert freezer.freeze()
    assert (tmp_path / "cgroup.procs").read_text() == "0"
    assert ((group / "cgroup.freeze").read_text(), (own / "cgroup.procs").read_text()) == ("1", "")
    freezer.thaw()
    assert ((group / "cgroup.freeze").read_text(), (own / "cgroup.procs").read_text()) == ("0", "0")


def test_where_the_agent_is_in_somebody_elses_group_nothing_is_frozen(tmp_path: Path) -> None:
    """Under an init of its own the agent sits in some service's group: it would freeze itself."""
    (tmp_path / "cgroup.procs").write_text("")
    group = make_group(tmp_path / "system.slice")
    (tmp_path / "own").write_text("0::/system.slice/agent.service\n")
    assert not Freezer(str(tmp_path), str(tmp_path / "own")).freeze()
    assert (group / "cgroup.freeze").read_text() == "0"
