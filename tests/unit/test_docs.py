"""README.md and docs/*.md: their links lead somewhere, their commands parse, their Python runs."""

from __future__ import annotations

import argparse
import ast
import asyncio
import builtins
import functools
import importlib
import inspect
import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import voidbox
from tests.unit import doc_pages
from tests.unit.agent.conftest import USER
from tests.unit.doc_pages import PAGES, ROOT, Block
from voidbox import defaults
from voidbox.cli import kept_options, network
from voidbox.cli.run import split
from voidbox.cli.verbs import VERBS, module_of
from voidbox.sandbox.child_environment import environment
from voidbox.sandbox.image_choice import Choice
from voidbox.sandbox.launch import launch
from voidbox.sandbox.state.lifecycle import _TRANSITIONS, Event, State
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.workspace import copying
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import draft, launching, sync, sync_commands, sync_files
from voidbox.sdk.sync import Sandbox

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FAKE_OWNER = "tests.unit.sandbox.fake_owner"

# --- links and paths ----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", doc_pages.prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", doc_pages.prose(page)):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_every_page_can_be_found() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in readme, page.name


# Paths from the root of the repository; and short ones of modules, as in `boot/layout.py`.
PATH = re.compile(
    r"(?<![\w./~-])((?:scripts|kernel|examples|voidbox|guest_agent|tests|docs|benchmarks)/[\w./-]*\w"
    r"|\w+(?:/\w+)*/\w+\.(?:py|sh))"
)


@every_page
def test_paths_exist(page: Path) -> None:
    text = re.sub(r"\w+://\S+", "", page.read_text())
    for name in PATH.findall(text):
        folders = (ROOT, ROOT / "voidbox")
        assert any((folder / name).exists() for folder in folders), f"{page.name}: {name}"


# --- commands -----------------------------------------------------------------------------------


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command with its verb's own parser; SystemExit or ConfigError if it is wrong."""
    if words[0] == "--remote":
        words = words[2:]
    verb, *rest = words
    if verb in ("--help", "--version"):
        return
    assert verb in VERBS, f"no such verb: {verb}"
    if "--help" in rest:
        return
    if verb != "run":
        importlib.import_module(module_of(verb)).make_options().parse_args(rest)
        return
    rest, _ = split(rest)
    options = importlib.import_module("voidbox.cli.run").make_options().parse_args(rest)
    network.parse(options, is_console=False)
    if kept_options.is_wanted(options):
        monkeypatch.setattr(defaults, "find_kernel", lambda: "kernel")
        monkeypatch.setattr(draft, "check_workspace", str)
        kept_options.make_record(options, "", Choice("image"))


@every_page
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        words
        for block in doc_pages.blocks(page)
        if block.language in ("", "sh", "console")
        for words in doc_pages.commands(block.text)
    ]
    spans = re.findall(r"`([^`]*)`", doc_pages.prose(page))
    # Those with a word to be replaced are no commands: `voidbox VERB --help`, `run [OPTION …]`.
    whole = [span.replace("\n", " ") for span in spans if not re.search(r"…|\[| VERB| -- C", span)]
    found += [words for span in whole for words in doc_pages.commands(span)]
    for words in found:
        if len(words) == 1 and words[0] in VERBS:
            continue  # a verb by its name: `voidbox rm`
        try:
            parse(words, monkeypatch)
        except SystemExit as error:
            raise AssertionError(f"{page.name}: voidbox {' '.join(words)}") from error
    wanted = ("README.md", "cli.md", "getting-started.md", "troubleshooting.md")
    assert len(found) > 3 or page.name not in wanted


def test_the_parsing_finds_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    (tar,) = doc_pages.commands("$ tar c x | voidbox exec -i box -- tar x  # says nothing")
    assert tar == ["exec", "-i", "box", "--", "tar", "x"]
    assert list(doc_pages.commands("voidbox rm $(voidbox ps -aq)")) == [["rm", "$"], ["ps", "-aq"]]
    assert list(doc_pages.commands("echo 'voidbox run' && python -m voidbox ps")) == [["ps"]]
    for words in (["rum"], ["ps", "--al"], ["run", "-d", "--stats", "f"], ["port", "ad", "b", "1"]):
        with pytest.raises((SystemExit, AssertionError, voidbox.ConfigError)):
            parse(words, monkeypatch)


FOLDERS = ("scripts", "kernel", "examples")  # programs with options of their own


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from options_of(sub)


@every_page
def test_options_exist(page: Path) -> None:
    known = {"--version", "--help", "--remote", "--device"}  # the last is of Docker and Podman
    for verb in VERBS:
        known |= {*options_of(importlib.import_module(module_of(verb)).make_options())}
    scripts = [path for name in FOLDERS for path in (ROOT / name).iterdir()]
    scripts += [ROOT / "guest_agent/relay.py", ROOT / "voidbox/images/pack.py"]
    texts = "".join(path.read_text() for path in scripts if path.is_file())
    for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", doc_pages.prose(page)):
        assert option in known or option in texts, f"{page.name}: {option}"


# What may stand in an example of a rule: names that nobody has (RFC 2606), and the one API that an
# example needs.
EXAMPLE_NAMES = re.compile(r"(\*\.)?example\.(com|net|org)|\*|api\.anthropic\.com|[\d./]+")


def rules_in(text: str) -> list[str]:
    """Return the rules of --allow and --deny, and of allow=[…] and deny=[…]."""
    found = re.findall(r"--(?:allow|deny) '?([\w*.:/-]*[.*][\w*.:/-]*)", text)
    for words in re.findall(r"\b(?:allow|deny)=\[([^\]]*)\]", text):
        found += re.findall(r"[\"']([^\"']+)[\"']", words)
    return found


def test_rules_in_examples_name_nobody() -> None:
    texts = [path.read_text() for path in (*PAGES, *(ROOT / "voidbox").rglob("*.py"))]
    rules = [rule for text in texts for rule in rules_in(text)]
    assert len(rules) > 10
    for rule in rules:
        assert EXAMPLE_NAMES.fullmatch(rule.rpartition(":")[0] or rule), rule


# --- messages and tables ------------------------------------------------------------------------


@functools.cache
def texts_of_the_source() -> str:
    """Return all string constants of voidbox, as they are put together."""
    found = []
    for path in (ROOT / "voidbox").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_are_those_of_the_program() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(messages) > 15
    for message in messages:
        for part in filter(None, (part.strip() for part in message.split("…"))):
            assert part in texts_of_the_source(), message


def test_the_lifecycle_table_is_the_programs() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.M)
    head = re.search(r"^\| state \| (.*) \|$", page, re.M)
    assert head is not None
    events = [Event[name] for name in head[1].split(" | ")]
    assert set(events) == set(Event)
    found = {
        (State(name), event): State(cell)
        for name, cells in rows
        if name in [state.value for state in State]
        for event, cell in zip(events, cells.split(" | "), strict=True)
        if cell != "-"
    }
    assert found == _TRANSITIONS


OFFERED = [
    Sandbox,
    sync_commands.Commands,
    sync_commands.CommandHandle,
    sync_commands.Pty,
    sync_commands.PtyHandle,
    sync_files.Files,
    sync_files.Watch,
    sync.Ports,
]


@pytest.mark.parametrize("offered", OFFERED, ids=lambda offered: offered.__name__)
def test_all_of_the_sdk_is_told(offered: type) -> None:
    page = (ROOT / "docs/sdk.md").read_text()
    for name, _ in inspect.getmembers(offered):
        if not name.startswith("_") and name not in ("close", "next"):
            assert re.search(rf"[.`]{name}\b", page), f"{offered.__name__}.{name}"


def test_all_arguments_and_names_are_told() -> None:
    page = (ROOT / "docs/sdk.md").read_text()
    for name in inspect.signature(Sandbox.create).parameters:
        assert f"`{name}`" in page, name
    for name in voidbox.__all__:
        if inspect.isclass(value := getattr(voidbox, name)) and issubclass(value, Exception):
            assert f"`{name}`" in page, name


# --- Python -------------------------------------------------------------------------------------

FAKED = doc_pages.python_blocks(with_real_vm=False)
REAL = doc_pages.python_blocks(with_real_vm=True)
every_block = pytest.mark.parametrize("block", [*FAKED, *REAL], ids=lambda block: block.id)


@every_block
def test_names_exist(block: Block) -> None:
    tree = ast.parse(block.text)
    known = {*dir(builtins), "sandbox"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), alias.name
                if node.module == "voidbox":
                    assert alias.name in voidbox.__all__ or alias.name == "defaults"
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name is not None:
            known.add(node.name)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used <= known, f"{block.id}: {used - known}"


@pytest.fixture
def fake_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have all sandboxes be fake_owner's, in a folder with what the examples find there."""
    kernel, image, work, here = (tmp_path / name for name in ("kernel", "image", "work", "here"))
    image.write_text(json.dumps({"mode": ""}))
    (here / "project").mkdir(parents=True)
    (here / "project/notes.txt").write_text("notes\n")
    work.mkdir()
    monkeypatch.chdir(here)
    make_record = draft.make_record

    def make(**values: Any) -> Any:
        return make_record(**{**values, "user": USER, "workdir": str(work)})

    monkeypatch.setattr(draft, "make_record", make)
    monkeypatch.setattr(defaults, "find_kernel", lambda: str(kernel))
    monkeypatch.setattr(defaults, "find_image", lambda kernel: str(image))
    monkeypatch.setattr(defaults, "find_root", lambda kernel: None)
    monkeypatch.setattr(launching, "launch", functools.partial(launch, owner=FAKE_OWNER))
    monkeypatch.setattr(launching, "make_zygote", lambda: Zygote(FAKE_OWNER, environment()))
    monkeypatch.setattr(copying, "GUEST_FOLDER", str(work))
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        monkeypatch.setenv("VOIDBOX_STATE", folder)
        yield
        store = Store()
        alive = [record.id for record in store.list() if store.is_alive(record.id)]
        for id in alive:
            fd = store.open_owner(id)
            if fd is not None:
                signal.pidfd_send_signal(fd, signal.SIGTERM)
                os.close(fd)
        assert not alive, "the page leaves sandboxes behind"


@pytest.mark.parametrize("block", FAKED, ids=lambda block: block.id)
def test_python_runs(block: Block, fake_machines: None) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    made = None
    if "sandbox" in block.text and "Sandbox.create(" not in block.text:
        made = names["sandbox"] = Sandbox.create()
    try:
        asyncio.run(doc_pages.run(block, names))
    finally:
        if made is not None:
            made.kill()


def test_what_needs_a_real_vm_says_why() -> None:
    assert 0 < len(REAL) < len(FAKED) / 3
    for block in REAL:
        assert len(block.mark) > len("real VM: ") + 10, block.id
