"""pip and `voidbox setup` on a Debian 13; tests/e2e/test_trixie_host.py runs what they gave."""

from __future__ import annotations

import json

import pytest

from tests.e2e.disk_images import saved_archive
from tests.trixie_host import HOME, PYTHON, VOIDBOX, Missing, TrixieHost, ready_host

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def host() -> TrixieHost:
    try:
        return ready_host()
    except Missing as error:
        pytest.skip(f"no Debian 13 here: {error}")


def test_pip_has_installed_both_wheels_for_its_python(host: TrixieHost) -> None:
    code = (
        "import voidbox, voidbox_runtime, cffi, sys; print(*sys.version_info[:2], voidbox.__file__)"
    )
    said = host.need(f"{HOME}/venv/bin/python", "-Ic", code)
    major, minor, path = said.split()
    assert f"{major}.{minor}" == PYTHON and path.startswith(f"{HOME}/venv/")


def test_doctor_finds_the_runtime_s_files_and_those_of_setup(host: TrixieHost) -> None:
    for variables, kernel in (
        ({"VOIDBOX_CACHE": "/tmp/none"}, f"{HOME}/venv/lib/python{PYTHON}/site-packages/"),
        ({"VOIDBOX_RUNTIME": ""}, f"{HOME}/.cache/voidbox/kernels/"),
    ):
        done = host.run(VOIDBOX, "doctor", "--json", **variables)
        found = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
        assert found["kernel"]["status"] == "pass", found
        assert found["kernel"]["found"].startswith(kernel), found
        assert "default.erofs" in found["image"]["found"], found


def test_setup_says_where_all_is(host: TrixieHost) -> None:
    said = json.loads(
        host.need(VOIDBOX, "setup", "--json", "--offline", "/mnt", folder=saved_archive())
    )
    assert set(said) == {"kernel", "image", "tiny"}
    for path in said.values():
        assert path.startswith(f"{HOME}/.cache/voidbox/")
        assert (host.root / path.lstrip("/")).exists(), path
