"""What is in an image: packages, where their sources are, and their licences."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from voidbox.images.tree import Tree
from voidbox.setup.packages import Package
from voidbox.setup.tree_edit import read

CONTENTS = "packages.json"
_SOURCE = re.compile(r"^Source: (\S+)(?: \((\S+)\))?$", re.MULTILINE)
# Of the machine-readable format (DEP 5); other files say it in prose.
_LICENCE = re.compile(r"^License:[ \t]*(\S[^\n]*)$", re.MULTILINE)


def describe(tree: Tree, packages: Sequence[Package]) -> list[dict[str, object]]:
    """Return what there is to say of packages whose documents are still in a tree."""
    return [_describe(tree, package) for package in sorted(packages, key=lambda one: one.name)]


def _describe(tree: Tree, package: Package) -> dict[str, object]:
    match = _SOURCE.search(package.stanza)
    source, version = (match[1], match[2]) if match else (package.name, None)
    found = read(tree, f"usr/share/doc/{package.name}/copyright") or b""
    text = found.decode("utf-8", "replace")
    return {
        "package": package.name,
        "version": package.version,
        "source": source,
        "source_version": version or package.version,
        "sha256": package.digest.sha256,
        "licences": sorted({name.strip() for name in _LICENCE.findall(text)}),
        "copyright": text,
    }


def write_contents(folder: str, contents: Sequence[dict[str, object]]) -> None:
    """Write it beside an image.

    Raises:
        OSError: writing failed.
    """
    with open(f"{folder}/{CONTENTS}", "x", encoding="utf-8") as file:
        json.dump(contents, file, indent=1)
        file.write("\n")
