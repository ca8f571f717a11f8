"""A store of images in a folder of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.images.fake_registry import FakeRegistry, fake_registry
from tests.unit.images.made import StoreFolder
from voidbox.images import registry as registry_module


@pytest.fixture
def stored(tmp_path: Path) -> StoreFolder:
    """Return a state folder with images."""
    return StoreFolder(tmp_path / "state")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have nobody wait before trying again, and know no passwords; see log_in."""
    monkeypatch.setattr(registry_module, "BACKOFF_S", 0)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)


@pytest.fixture
def registry(no_waiting: None) -> Iterator[FakeRegistry]:
    """Return a registry that does as it is told."""
    with fake_registry() as registry:
        yield registry
