"""Names of images: docker's grammar, and one line for what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox.errors import ConfigError
from voidbox.images.reference import Reference, is_digest, parse_reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "familiar"),
    [
        ("python", "docker.io", "library/python", "latest", "python:latest"),
        ("python:3.12", "docker.io", "library/python", "3.12", "python:3.12"),
        ("me/tool", "docker.io", "me/tool", "latest", "me/tool:latest"),
        ("docker.io/python", "docker.io", "library/python", "latest", "python:latest"),
        ("index.docker.io/a/b:c", "docker.io", "a/b", "c", "a/b:c"),
        ("localhost/x", "localhost", "x", "latest", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000", "x", "latest", "localhost:5000/x:latest"),
        ("r.example:5000/team/app:1", "r.example:5000", "team/app", "1", None),
        ("R.Example/x", "r.example", "x", "latest", "r.example/x:latest"),
        ("[::1]:5000/x:y", "[::1]:5000", "x", "y", "[::1]:5000/x:y"),
        ("127.0.0.1:1/a__b/c-d--e.f:T_0.-", "127.0.0.1:1", "a__b/c-d--e.f", "T_0.-", None),
        (HEX, "docker.io", f"library/{HEX}", "latest", f"{HEX}:latest"),
    ],
)
def test_names(text: str, registry: str, repository: str, tag: str, familiar: str | None) -> None:
    reference = parse_reference(text)
    assert reference == Reference(registry, repository, tag, "")
    assert reference.familiar == (familiar or text)
    assert parse_reference(reference.name) == parse_reference(reference.familiar) == reference


@pytest.mark.parametrize("text", [f"python@{DIGEST}", f"python:3.12@{DIGEST}"])
def test_a_digest_tells_alone(text: str) -> None:
    reference = parse_reference(text)
    assert reference == Reference("docker.io", "library/python", "", DIGEST)
    assert reference.familiar == f"python@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no repository"),
        ("/x", "no repository|no registry|letters and digits"),
        ("Python", "small letters"),
        ("a/Python", "small letters"),
        ("python:", "a tag has"),
        ("python:a/b", "no registry"),
        ("python:" + "a" * 129, "a tag has"),
        ("python@sha256:12", "a digest is"),
        (f"python@md5:{HEX}", "a digest is"),
        (f"python@{DIGEST.upper()}", "a digest is"),
        ("../../etc/passwd", "no registry|letters and digits"),
        ("a/../b", "letters and digits"),
        ("a//b", "letters and digits"),
        ("a_/b", "letters and digits"),
        ("a" * 256, "up to 255"),
        ("h:0/x", "no registry's host and port"),
        ("h:65536/x", "no registry's host and port"),
        ("h:x/x", "no registry's host and port"),
        ("h..e/x", "no registry's host and port"),
        ("u@h.example/x", "a digest is"),
        ("https://h.example/x", "no registry|letters and digits"),
        ("h.example/x\n", "letters and digits"),
        ("h.example/x:1\n", "a tag has"),
    ],
)
def test_what_is_none(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"is no image's name: .*({why})") as error:
        parse_reference(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


@given(st.text(st.sampled_from("ab:/@.-_[]0 \n\0A"), max_size=20))
def test_anything_is_a_name_or_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except ConfigError:
        return
    assert parse_reference(reference.name) == reference
    assert not {"\n", " ", "\0"} & set(reference.name) and ".." not in reference.name


def test_digests() -> None:
    assert is_digest(DIGEST)
    for text in (f"sha256:{HEX}\n", f"sha256:../{HEX[3:]}", HEX, f"sha512:{HEX * 2}", ""):
        assert not is_digest(text)
