"""Where this host's apt has the archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from voidbox.setup.apt_conf import read_apt_conf
from voidbox.setup.errors import SetupError
from voidbox.setup.sources import Source, folder_sources, host_sources, mirror_sources

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
 bookworm-backports
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://security.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no
"""
ONE_LINE = """\
deb cdrom:[Debian 12]/ bookworm main
deb [arch=arm64] http://arm.example/debian bookworm main
deb-src http://mirror.example/debian bookworm main
# deb http://comment.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/other.gpg] https://other.example/apt bookworm main
deb https://packages.example/ce bookworm stable
deb [ arch=amd64 ] http://mirror.example/debian/ bookworm main contrib  # ours
deb http://mirror.example/debian bookworm non-free
"""


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_stanzas(tmp_path: Path) -> None:
    write(tmp_path, "sources.list.d/debian.sources", DEB822)
    assert host_sources("bookworm", str(tmp_path)) == [
        Source("http://mirror.example/debian", "bookworm", ("main", "non-free-firmware")),
        Source(
            "http://mirror.example/debian", "bookworm-updates", ("main", "non-free-firmware"), False
        ),
        Source("https://security.example/debian-security", "bookworm-security", ("main",), False),
    ]


def test_lines(tmp_path: Path) -> None:
    write(tmp_path, "sources.list", ONE_LINE)
    assert host_sources("bookworm", str(tmp_path)) == [
        Source("http://mirror.example/debian", "bookworm", ("main", "contrib"))
    ]


def test_another_release_of_debian_tells_where_this_one_is(tmp_path: Path) -> None:
    write(tmp_path, "sources.list.d/debian.sources", DEB822)
    found = host_sources("trixie", str(tmp_path))
    assert [(source.uri, source.suite) for source in found] == [
        ("http://mirror.example/debian", "trixie"),
        ("http://mirror.example/debian", "trixie-updates"),
        ("https://security.example/debian-security", "trixie-security"),
    ]


def test_a_list_of_mirrors(tmp_path: Path) -> None:
    mirrors = tmp_path / "mirrors.list"
    mirrors.write_text("# ours\nhttp://first.example/debian\tpriority:1\nhttp://other.example/d\n")
    write(tmp_path, "sources.list", f"deb mirror+file:{mirrors} bookworm main\n")
    assert [source.uri for source in host_sources("bookworm", str(tmp_path))] == [
        "http://first.example/debian"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "deb http://archive.example/ubuntu noble main",
        "deb tor+http://mirror.example/debian bookworm main",
        "deb",
        "deb [ x",
    ],
)
def test_none_of_debians(tmp_path: Path, line: str) -> None:
    write(tmp_path, "sources.list", line)
    with pytest.raises(SetupError, match="no source of Debian's bookworm: name a mirror with"):
        host_sources("bookworm", str(tmp_path))


def test_a_mirror_that_is_named() -> None:
    found = mirror_sources("http://h/debian/", "x")
    assert [(one.uri, one.suite, one.is_needed) for one in found] == [
        ("http://h/debian", "x", True),
        ("http://h/debian", "x-updates", False),
        ("http://h/debian-security", "x-security", False),
    ]  # fmt: skip
    assert len(mirror_sources("https://h/other", "bookworm")) == 2


@pytest.mark.parametrize("uri", ["", "h/debian", "ftp://h/debian", "http://h/de bian", "-x"])
def test_mirrors_that_are_none(uri: str) -> None:
    with pytest.raises(SetupError, match="is no address: write it as http://HOST/debian"):
        mirror_sources(uri, "bookworm")


@pytest.mark.parametrize("suite", ["", "-x", "../x", "a b", "A"])
def test_suites_that_are_none(suite: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no name of a Debian release"):
        mirror_sources("http://h/debian", suite)
    with pytest.raises(SetupError, match="no name of a Debian release"):
        folder_sources(str(tmp_path), suite)


def test_what_apt_conf_says(tmp_path: Path) -> None:
    assert read_apt_conf(str(tmp_path)).proxies == {}
    write(tmp_path, "apt.conf.d/01proxy", 'Acquire::http::Proxy "http://proxy.example:3128";\n')
    write(
        tmp_path, "apt.conf.d/02more",
        """
        // a comment
        APT { NeverAutoRemove { "^linux.*"; }; };
        #clear Nothing;
        Acquire { /* both */ https { Proxy "DIRECT"; Proxy::h.example "http://other.example"; };
          Check-Valid-Until "false"; };
        """,
    )  # fmt: skip
    write(tmp_path, "apt.conf.d/03.disabled", 'Acquire::http::Proxy "http://wrong.example";\n')
    conf = read_apt_conf(str(tmp_path))
    assert conf.proxies == {
        "http": "http://proxy.example:3128",
        "https": "DIRECT",
        "https::h.example": "http://other.example",
    }
    assert not conf.are_dates_checked
    write(tmp_path, "apt.conf", '}}} "unfinished { ;; Acquire')
    read_apt_conf(str(tmp_path))
