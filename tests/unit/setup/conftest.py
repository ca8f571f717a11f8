"""An archive of the tests' own, and who trusts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.images.made import StoreFolder
from tests.unit.setup.fake_archive import FakeArchive
from voidbox.setup import site as site_module
from voidbox.setup.archive import Archive, ArchiveOptions, open_archive

Open = Callable[..., Archive]


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeArchive]:
    """Return an archive that does as it is told; nobody waits before trying again."""
    monkeypatch.setattr(site_module, "BACKOFF_S", 0)
    monkeypatch.setenv("VOIDBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VOIDBOX_MIRROR", raising=False)
    archive = FakeArchive()
    (tmp_path / "keyring.gpg").write_bytes(archive.signer.keyring())
    try:
        yield archive
    finally:
        archive.close()


@pytest.fixture
def told() -> list[str]:
    """What the user was told."""
    return []


@pytest.fixture
def open_it(mirror: FakeArchive, tmp_path: Path, told: list[str]) -> Iterator[Open]:
    """Return what opens that archive, or another one."""
    opened: list[Archive] = []

    def open_(**options: object) -> Archive:
        values = {"mirror": mirror.uri, "keyring": str(tmp_path / "keyring.gpg"), **options}
        archive = open_archive(
            ArchiveOptions(**values),  # type: ignore[arg-type]
            lambda step: told.append(step.item) if step.stage == "install" else None,
        )
        opened.append(archive)
        return archive

    yield open_
    for archive in opened:
        archive.__exit__(None, None, None)


@pytest.fixture
def stored(tmp_path: Path) -> StoreFolder:
    """Return a state folder with images."""
    return StoreFolder(tmp_path / "state")
