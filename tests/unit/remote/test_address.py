"""Which server is meant."""

from __future__ import annotations

import pytest

from voidbox.errors import ConfigError
from voidbox.remote import address


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("https://box.example/", "https://box.example:443"),
        ("https://box.example/voidbox/", "https://box.example:443/voidbox"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_urls(url: str, wanted: str) -> None:
    assert address.parse(url, "k").url == wanted


@pytest.mark.parametrize(
    "url",
    ["box.example", "ftp://x", "http://", "http://x:70000", "http://u@x", "http://x?y=z", "::"],
)
def test_what_is_no_server(url: str) -> None:
    with pytest.raises(ConfigError, match="is no server: give http"):
        address.parse(url, "k")


@pytest.mark.parametrize("key", ["", "a\r\nX: y", "ä"])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(ConfigError, match="VOIDBOX_API_KEY"):
        address.parse("http://x", key)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOIDBOX_API_KEY", "k")
    monkeypatch.delenv("VOIDBOX_REMOTE", raising=False)
    assert address.find(None) is None
    monkeypatch.setenv("VOIDBOX_REMOTE", "http://a:1")
    for given, wanted in ((None, "a"), ("http://b:2", "b")):
        found = address.find(given)
        assert found is not None and found.host == wanted
