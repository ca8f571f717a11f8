"""Which of E2B's SDKs are fetched, as scripts/fetch_sdks.sh says, and the table of docs/serve.md.

python -m tests.unit.serve.sdk_versions      write the table; `make sdk-table` does, once all pass
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

from voidbox import defaults

ROOT = Path(__file__).parents[3]
SDKS = Path(defaults.cache_folder()) / "sdks"
DOCUMENT = ROOT / "docs" / "serve.md"
# In the table's order; what is promised begins with the oldest that is tested.
NAMES = {
    ("python", "e2b"): "PyPI `e2b`",
    ("python", "e2b-code-interpreter"): "PyPI `e2b-code-interpreter`",
    ("javascript", "e2b"): "npm `e2b`",
    ("javascript", "@e2b/code-interpreter"): "npm `@e2b/code-interpreter`",
}
_LINE = re.compile(r"^ *(python|javascript) ((?:py|js)-\S+) (.+)$", re.MULTILINE)
_PACKAGE = re.compile(r"(\S+?)(?:==|(?<!^)(?<! )@)(\d\S*)")
_TABLE = re.compile(r"(?<=\n)\| SDK \|.*?\n(?=\n)", re.DOTALL)
_FRAMEWORKS = re.compile(r"^if .*= frameworks \].*?^fi$", re.MULTILINE | re.DOTALL)


class Fetched(NamedTuple):
    """One environment with an SDK.

    Attributes:
        language: "python" or "javascript".
        name: of its folder.
        versions: by the packages' names; of those that are tested there.
    """

    language: str
    name: str
    versions: dict[str, str]

    @property
    def folder(self) -> Path:
        return SDKS / self.name

    @property
    def program(self) -> Path:
        """What is there once it is fetched: the SDK's own interpreter, or its packages."""
        return self.folder / ("bin/python" if self.language == "python" else "node_modules")


def fetched() -> list[Fetched]:
    """Return what the script fetches, without the frameworks."""
    script = (ROOT / "scripts" / "fetch_sdks.sh").read_text()
    found = []
    for language, name, words in _LINE.findall(_FRAMEWORKS.sub("", script)):
        versions = dict(_PACKAGE.findall(words))
        own = {package: versions[package] for package in versions if (language, package) in NAMES}
        if next(iter(own), "") != "e2b":  # what a package needs is not what is looked at
            own.pop("e2b", None)
        if own:
            found.append(Fetched(language, name, own))
    return found


def with_package(language: str, package: str) -> list[Fetched]:
    """Return those with a package, the oldest version first."""
    found = [one for one in fetched() if one.language == language and package in one.versions]
    return sorted(found, key=lambda one: _number(one.versions[package]))


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def table() -> str:
    """Return the table as the document has to have it."""
    lines = ["| SDK | versions | tested |", "|---|---|---|"]
    for (language, package), title in NAMES.items():
        versions = [one.versions[package] for one in with_package(language, package)]
        since = ".".join(versions[0].split(".")[:2])
        lines.append(f"| {title} | {since} and later | {', '.join(versions)} |")
    return "\n".join(lines) + "\n"


def in_document() -> str:
    """Return the table that the document has."""
    found = _TABLE.search(DOCUMENT.read_text())
    assert found is not None, "docs/serve.md has no table of SDKs"
    return found[0]


def main() -> int:
    """Write the table into the document; 1 if one in it cannot have been tested."""
    missing = [one.name for one in fetched() if not one.program.exists()]
    if missing:
        print(f"make sdks does not have {', '.join(missing)}: is there npm?", file=sys.stderr)
        return 1
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(text.replace(in_document(), table()))
    print(table(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
