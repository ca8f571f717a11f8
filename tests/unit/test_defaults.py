"""What is booted when nothing is named: what setup made, the installed runtime, the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from voidbox import defaults
from voidbox.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOIDBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VOIDBOX_RUNTIME", "")
    return tmp_path / "cache"


def make(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def make_runtime(folder: Path, api: str = str(defaults.RUNTIME_API)) -> Path:
    make(*(folder / name for name in ("bzImage", "boot.cpio", "runtime.erofs", "default.erofs")))
    (folder / "api").write_text(f"{api}\n")
    return folder


@pytest.fixture
def runtime(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed one: a package that can be imported."""
    monkeypatch.delenv("VOIDBOX_RUNTIME")
    folder = make_runtime(tmp_path / "site" / "voidbox_runtime")
    make(folder / "__init__.py")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_nothing_is_there(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"no kernel in .*pip install.*voidbox setup"):
        defaults.find_kernel()
    assert defaults.find_default_image() is None
    assert defaults.find_runtime() is None


def test_an_installed_runtime_is_all_that_is_needed(runtime: Path) -> None:
    kernel = defaults.find_kernel()
    assert kernel == str(runtime / "bzImage")
    assert defaults.find_root(kernel) == (
        str(runtime / "boot.cpio"),
        str(runtime / "runtime.erofs"),
    )
    assert defaults.find_default_image() == str(runtime / "default.erofs")
    assert "voidbox_runtime" not in sys.modules  # it is only looked for


def test_the_runtime_comes_before_what_scripts_built(runtime: Path, cache: Path) -> None:
    make(cache / "kernels/current-minimal/bzImage", cache / "kernels/current-cloud/vmlinuz")
    make(
        cache / "images/current-builtin/initramfs.cpio",
        cache / "images/current-default/default.erofs",
    )
    assert defaults.find_kernel() == str(runtime / "bzImage")
    assert defaults.find_root(defaults.find_kernel()) == (
        str(runtime / "boot.cpio"), str(runtime / "runtime.erofs"),
    )  # fmt: skip
    assert defaults.find_default_image() == str(runtime / "default.erofs")


def test_what_setup_made_comes_before_the_runtime(runtime: Path, cache: Path) -> None:
    make(cache / "kernels/current/vmlinuz")
    assert defaults.find_kernel() == str(cache / "kernels/current/vmlinuz")
    assert defaults.find_default_image() == str(runtime / "default.erofs")
    make(cache / "images/current-default/default.erofs")
    assert defaults.find_default_image() == str(cache / "images/current-default/default.erofs")


def test_a_kernel_with_modules_gets_the_image_that_has_them(
    runtime: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache / "images/current-6.1.0-1-cloud-amd64"
    make(*(folder / name for name in ("initramfs.cpio", "boot.cpio", "runtime.erofs")))
    monkeypatch.setattr(defaults, "kernel_release", lambda path: "6.1.0-1-cloud-amd64")
    assert defaults.find_root("/k/vmlinuz") == (
        str(folder / "boot.cpio"), str(folder / "runtime.erofs"),
    )  # fmt: skip
    # The runtime's own kernel has none, whatever it calls itself.
    assert defaults.find_root(str(runtime / "bzImage")) == (
        str(runtime / "boot.cpio"), str(runtime / "runtime.erofs"),
    )  # fmt: skip


@pytest.mark.parametrize("api", ["0", "99", "", "\xff", "x" * 100])
def test_a_runtime_that_does_not_fit_is_told_in_one_line(runtime: Path, api: str) -> None:
    (runtime / "api").write_bytes(api.encode("latin-1"))
    for find in (defaults.find_kernel, defaults.find_default_image):
        with pytest.raises(
            ConfigError, match=r"pip install --upgrade 'voidbox-kvm\[runtime\]'"
        ) as told:
            find()
        assert "\n" not in str(told.value) and str(runtime) in str(told.value)


def test_a_runtime_that_is_not_whole_is_told(runtime: Path) -> None:
    (runtime / "api").unlink()
    with pytest.raises(ConfigError, match="is no runtime of voidbox"):
        defaults.find_kernel()


def test_a_folder_of_that_name_is_no_runtime(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "voidbox_runtime").mkdir()
    code = "from voidbox import defaults; print(defaults.find_runtime())"
    environment = {"PYTHONPATH": str(ROOT), "VOIDBOX_CACHE": str(cache), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "None\n"


def test_a_variable_names_another_runtime(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_runtime(tmp_path / "other")
    monkeypatch.setenv("VOIDBOX_RUNTIME", str(other))
    assert defaults.find_kernel() == str(other / "bzImage")
    monkeypatch.setenv("VOIDBOX_RUNTIME", "")
    with pytest.raises(ConfigError, match="no kernel"):
        defaults.find_kernel()
