"""What pip and `voidbox setup` give on a Debian 13, at work: with its Python and its C library."""

from __future__ import annotations

import pytest

from tests.trixie_host import VOIDBOX, Missing, TrixieHost, ready_host

pytestmark = pytest.mark.boot

RUN = (VOIDBOX, "run", "--memory", "512M", "--timeout", "240", "--")


@pytest.fixture(scope="module")
def host() -> TrixieHost:
    try:
        return ready_host()
    except Missing as error:
        pytest.skip(f"no Debian 13 here: {error}; python -m tests.trixie_host makes one")


@pytest.mark.parametrize(
    "variables",
    [{"VOIDBOX_CACHE": "/tmp/none"}, {"VOIDBOX_RUNTIME": ""}],
    ids=["the runtime wheel", "voidbox setup"],
)
def test_the_very_first_command(host: TrixieHost, variables: dict[str, str]) -> None:
    done = host.run(*RUN, "python3", "-c", "print(6*7)", **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", ""), done


def test_a_guest_has_the_default_image_and_the_world_is_closed(host: TrixieHost) -> None:
    line = "git --version && id -un && test ! -e /sys/class/net/eth0 && echo closed"
    done = host.run(VOIDBOX, "run", "--net", "off", "--timeout", "240", "--", "bash", "-c", line)
    assert done.returncode == 0, done
    assert [word.split()[0] for word in done.stdout.splitlines()] == ["git", "sandbox", "closed"]
