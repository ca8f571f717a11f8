"""Locks on files that others delete and make anew."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from voidbox.images.flock import OwnedFile, try_lock


def test_a_file_replaced_before_it_is_locked_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "lock")
    lock = fcntl.flock
    for is_made_anew in (False, True):
        Path(path).touch()

        def replace(fd: int, how: int, is_made_anew: bool = is_made_anew) -> None:
            os.unlink(path)
            if is_made_anew:
                Path(path).touch()
            lock(fd, how)

        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", replace)
            assert try_lock(path) is None
    fd = try_lock(path)
    assert fd is not None
    os.close(fd)
    assert try_lock(str(tmp_path / "none")) is None


def test_a_file_that_is_gone_is_deleted(tmp_path: Path) -> None:
    with OwnedFile(str(tmp_path / "lock")) as file:
        os.unlink(file.path)
        file.delete()
