"""Whom a name or a number means, by the root's own tables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guest_agent import users
from guest_agent.connection import RequestError
from guest_agent.users import User, find

PASSWD = """\
root:x:0:0:the boss:/root:/bin/bash
app:x:100:101:::
broken:x:1
odd:x:not:a:number:/:/bin/sh
high:x:4294967295:1::/:/bin/sh
"""
GROUP = "app:x:101:\nstaff:x:50:app,root\nwheel:x:10:root\nbroken\n"


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "passwd").write_text(PASSWD)
    (tmp_path / "group").write_text(GROUP)
    monkeypatch.setattr(users, "PASSWD", str(tmp_path / "passwd"))
    monkeypatch.setattr(users, "GROUP", str(tmp_path / "group"))
    return tmp_path


def test_names_and_numbers() -> None:
    root = User("root", 0, 0, (0, 50, 10), "/root", "/bin/bash")
    app = User("app", 100, 101, (101, 50), "/", "/bin/sh")
    assert (find("root"), find("0")) == (root, root)
    assert (find("app"), find("100")) == (app, app)
    assert find("1234") == User("1234", 1234, 0, (0,), "/", "/bin/sh")  # as with docker


def test_a_group_of_choice_is_the_only_one() -> None:
    assert find("app:10")[1:4] == (100, 10, (10,))
    assert find("app:staff")[1:4] == (100, 50, (50,))
    assert find("100:staff")[1:4] == (100, 50, (50,))
    assert find("1234:5678")[1:4] == (1234, 5678, (5678,))
    assert find(":staff")[:4] == ("root", 0, 50, (50,))
    assert find("app:") == find("app")


@pytest.mark.parametrize(
    "spec",
    ["", ":", ":nobody", "nobody:", "nobody", "app:nobody", "broken", "odd", "high", "-1",
     "4294967295", "0:4294967295", "99999999999", "²", "app:staff:x", "x" * 10000],
)  # fmt: skip
def test_nobody_is_refused(spec: str) -> None:
    with pytest.raises(RequestError, match="no user"):
        find(spec)


def test_a_root_without_tables(tables: Path) -> None:
    (tables / "passwd").unlink()
    os.unlink(tables / "group")
    home = "/root" if os.path.isdir("/root") else "/"
    assert find("root") == find("0") == User("root", 0, 0, (0,), home, "/bin/sh")
    assert find("65532").uid == 65532
    with pytest.raises(RequestError, match="no user 'app' in the guest"):
        find("app")


def test_bytes_that_are_no_text(tables: Path) -> None:
    (tables / "passwd").write_bytes(b"\xff\xfe\n\xffx:x:7:7::/h\xff:/bin/sh\n" + b"x" * 100)
    user = find("7")
    assert user.name == "?x"
    assert os.fsencode(user.home) == b"/h\xff"


def test_tables_made_by_hand(tables: Path) -> None:
    (tables / "passwd").write_text(
        "\n# ours\nshort:x:5:6\nbob:x:1001:1002::/home/bob\n"
        "ann:x:8:9:A\u2028n\x0cn:/ann:/bin/ash:more\n"
    )
    (tables / "group").write_text("app:x:1000\nlong:x:1001:bob:more\n")
    assert find("short") == User("short", 5, 6, (6,), "/", "/bin/sh")
    assert find("bob") == User("bob", 1001, 1002, (1002, 1001), "/home/bob", "/bin/sh")
    assert find("ann") == User("ann", 8, 9, (9,), "/ann", "/bin/ash")
    assert find("ann:app").gid == 1000


def test_the_default_can_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "_default", ["sandbox"])
    assert users.default() == "sandbox"
    users.set_default("app:10")
    assert users.default() == "app:10"


def test_a_table_that_has_changed_is_read_anew(tables: Path) -> None:
    before = users.find("app")
    assert users.find("app") is before
    text = (tables / "passwd").read_text()
    (tables / "passwd").write_text(text.replace(f"app:x:{before.uid}", "app:x:999"))
    assert users.find("app").uid == 999
    (tables / "passwd").unlink()
    with pytest.raises(RequestError, match="no user"):
        users.find("app")
