"""README.md and docs/*.md, taken apart for tests."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"```(\w*)$")
_MARK = re.compile(r"<!-- (.+) -->$")
_EXPECTED = re.compile(r"#.*→ (.*)$")
_SEPARATORS = frozenset("|;&()<>")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        language: of a fence; "" for an indented block.
        mark: of the comment above it: "e2e" for commands that are run with a real VM,
            "real VM: WHY" for Python that is; else "".
    """

    page: str
    line: int
    language: str
    mark: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of code of a page."""
    lines = page.read_text().split("\n")
    mark, at = "", 0
    while at < len(lines):
        line, start = lines[at], at
        if (fence := _FENCE.match(line)) is not None:
            at = lines.index("```", at + 1)
            text = "\n".join(lines[start + 1 : at])
            yield Block(page.name, start + 1, fence[1], mark, f"{text}\n")
            mark = ""
        elif line.startswith("    ") and (start == 0 or not lines[start - 1].strip()):
            while at + 1 < len(lines) and lines[at + 1].startswith("    "):
                at += 1
            text = "\n".join(line[4:] for line in lines[start : at + 1])
            yield Block(page.name, start + 1, "", mark, f"{text}\n")
            mark = ""
        elif (found := _MARK.match(line)) is not None:
            mark = found[1]
        elif line.strip():
            mark = ""
        at += 1


def python_blocks(*, with_real_vm: bool) -> list[Block]:
    """Return the Python of all pages: what needs a real VM, or what does not."""
    return [
        block
        for page in PAGES
        for block in blocks(page)
        if block.language == "python" and block.mark.startswith("real VM: ") is with_real_vm
    ]


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    lines = page.read_text().split("\n")
    for block in blocks(page):
        fences = 2 if lines[block.line - 1].startswith("```") else 0
        for at in range(block.line - 1, block.line - 1 + block.text.count("\n") + fences):
            lines[at] = ""
    return "\n".join(lines)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each `voidbox …` in lines for a shell, without the word voidbox."""
    for line in text.split("\n"):
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a drawing, say
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if not set(word) <= _SEPARATORS:
                command.append(word)
                continue
            if command[:3] == ["python", "-m", "voidbox"]:
                command = command[2:]
            if command[:1] == ["voidbox"] and len(command) > 1:
                yield command[1:]
            command = []


async def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block, and compare what it prints with what its comments say."""
    code = compile(
        block.text, block.id, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        running = eval(code, names)
        if inspect.isawaitable(running):
            await running
    found = [line.rpartition("\r")[2] for line in printed.getvalue().split("\n")]
    at = 0
    for line in block.text.split("\n"):
        if (expected := _EXPECTED.search(line)) is not None:
            wanted = expected[1].strip()
            assert wanted in found[at:], f"{block.id}: {line.strip()}: printed {found}"
            at = found.index(wanted, at) + 1
