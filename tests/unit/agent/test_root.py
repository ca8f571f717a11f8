"""What the agent is told of an image, and what it makes in its root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guest_agent import root
from guest_agent.root import Image
from voidbox.agent import protocol


def test_what_the_host_says_of_an_image() -> None:
    image = Image("user app:staff\nworkdir /srv/with a blank\nlater 1\n")
    assert (image.user, image.workdir) == ("app:staff", "/srv/with a blank")
    assert Image("workdir /a\u2028b\x0cc\n").workdir == "/a\u2028b\x0cc"
    image = Image("volume /var/lib/a b\nuser app\nvolume /data\n")
    assert (image.user, image.volumes) == ("app", ["/var/lib/a b", "/data"])
    for text in ("", "user \nworkdir \n", "nonsense"):
        image = Image(text)
        assert (image.user, image.workdir, image.volumes) == ("root", "", [])


def test_without_a_file_the_root_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root, "PREFIX", str(tmp_path))
    assert root.read_image() is None
    path = tmp_path / protocol.IMAGE_PATH.lstrip("/")
    path.parent.mkdir(parents=True)
    path.write_text("user 7\n")
    found = root.read_image()
    assert found is not None and found.user == "7"


def test_where_the_agent_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("", "/.voidbox"):
        monkeypatch.setattr(root, "__file__", f"{prefix}/usr/lib/voidbox/guest_agent/root.py")
        assert root._prefix() == prefix
    monkeypatch.setattr(root, "__file__", "/home/me/voidbox/guest_agent/root.py")
    assert root._prefix() == ""


def test_a_folder_is_made_where_links_lead(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    root._make_folder(str(tmp_path / "link" / "app"))
    assert (tmp_path / "real" / "app").is_dir()
    root._make_folder(str(tmp_path / "link" / "app"))
    root._make_folder("")
    root._make_folder("relative")
    assert not os.path.exists("relative")
