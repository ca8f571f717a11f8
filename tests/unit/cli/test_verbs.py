"""What all verbs have in common: help, completion, quick starts."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import ROOT, Cli
from voidbox.cli import completion, kept_options, root_options, run
from voidbox.cli.verbs import VERBS, module_of, nearest, usage


def parser_of(verb: str) -> argparse.ArgumentParser:
    module = __import__(module_of(verb), fromlist=["make_options"])
    parser: argparse.ArgumentParser = module.make_options()
    return parser


def parse(command: str) -> argparse.Namespace:
    """Parse a line of a document, as far as its first `|`, `>` or `;`."""
    words = shlex.split(re.split(r" [|>;] ?", re.sub(r"\$\([^)]*\)", "box", command))[0])
    assert words[0] == "voidbox"
    if words[1] == "--remote":  # and a server's URL
        del words[1:3]
    verb, arguments = words[1], words[2:]
    if verb == "run" and "--" in arguments:
        arguments = arguments[: arguments.index("--")]
    return parser_of(verb).parse_args(arguments)


def examples(text: str) -> list[str]:
    lines = (line.strip().removeprefix("$ ") for line in text.splitlines())
    found = []
    for line in lines:
        at = line.find("voidbox ")
        if line.startswith("voidbox ") or (at > 0 and line[:at].endswith("| ")):
            found.append(re.sub(r"\s+#.*", "", line[at:]))
    return found


def test_the_overall_help_names_every_verb_once() -> None:
    named = re.findall(r"^  ([a-z-]+) +", usage(), re.MULTILINE)
    assert [name for name in named if name != "voidbox"] == list(VERBS)
    assert all(len(line) <= 100 for line in usage().splitlines())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_help_has_examples_that_can_be_parsed(verb: str) -> None:
    text = parser_of(verb).format_help()
    assert "examples:" in text
    found = examples(text[text.index("examples:") :])
    assert found
    assert verb in {shlex.split(example)[1] for example in found}
    for example in found:
        parse(example)


def test_every_command_of_the_document_can_be_parsed() -> None:
    found = examples((ROOT / "docs/cli.md").read_text())
    assert {shlex.split(command)[1] for command in found} >= VERBS.keys() - {"help"}
    for command in found:
        parse(command)


def test_the_document_tells_of_every_option() -> None:
    document = (ROOT / "docs/cli.md").read_text()
    for verb in VERBS.keys() - {"run", "doctor", "completion"}:  # README.md tells of theirs
        for spellings, _ in completion.options_of(verb):
            if "--help" not in spellings and "--verbose" not in spellings:
                assert spellings[-1] in document, (verb, spellings)


@pytest.mark.parametrize(
    ("word", "verb"),
    [("sh", "shell"), ("exce", "exec"), ("inspct", "inspect"), ("list", "ps"), ("remove", "rm"),
     ("unpause", "resume"), ("log", "logs"), ("xyzzy", "")],
)  # fmt: skip
def test_unknown_verbs_suggest_the_nearest(word: str, verb: str) -> None:
    assert nearest(word) == verb


def test_an_unknown_verb_is_told_shortly(cli: Cli) -> None:
    result = cli("exce")
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == "voidbox: no such verb: exce: do you mean exec?"
    assert cli.ok("help", "ps").startswith("usage: voidbox ps")


SLOW = {"asyncio", "logging", "cffi", "subprocess", "socket", "threading", "voidbox.vmm.machine"}


@pytest.mark.parametrize(
    "arguments",
    [["ps"], ["inspect", "box"], ["logs", "box"], ["rename", "box", "fox"], ["rm", "box"],
     ["prune"]],
)  # fmt: skip
def test_what_only_looks_at_records_starts_quickly(arguments: list[str], cli: Cli) -> None:
    # Not a timing: the modules that would make it slow are not imported.
    cli.sandboxes.create(name="box")
    cli.sandboxes.store.close()
    cli("ps")
    code = (
        f"import sys, voidbox.cli as c; c.main({arguments!r}); print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=cli.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(result.stderr.split()) & SLOW


def test_the_usual_run_does_not_load_what_only_kept_sandboxes_need() -> None:
    code = "import sys, voidbox.cli.run; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not set(result.stdout.split()) & {
        "asyncio", "subprocess", "voidbox.sandbox.state.store", "voidbox.sandbox.launch",
    }  # fmt: skip


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_sound(shell: str, cli: Cli, tmp_path: Path) -> None:
    script = cli.ok("completion", shell)
    assert all(verb in script for verb in VERBS)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here: install it to have its script checked")
    (tmp_path / "script").write_text(script)
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [("voidbox exe", ["exec"]), ("voidbox stop fo", ["fox"]), ("voidbox rm o", ["otter"]),
     ("voidbox ps --q", ["--quiet"]), ("voidbox port ", ["add", "rm", "ls", "wait"]),
     ("voidbox logs --f", ["--follow"])],
)  # fmt: skip
def test_bash_completes_verbs_options_and_sandboxes(
    line: str, expected: list[str], cli: Cli, tmp_path: Path
) -> None:
    cli.sandboxes.create(name="fox")
    cli.ended("otter")
    cli("ps")
    program = tmp_path / "voidbox"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m voidbox "$@"\n')
    program.chmod(0o755)
    script = f"""
source <({program} completion bash)
COMP_WORDS=({line}{" ''" if line.endswith(" ") else ""})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_voidbox
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", script], env={**cli.environment, "PATH": path}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert result.stdout.split() == expected


def test_options_of_a_kept_sandbox_make_a_record() -> None:
    options = run.make_options().parse_args(
        ["-d", "--name", "web", "--kernel", "/k", "--initramfs", "/i", "--memory", "1G", "--cpus",
         "2", "-e", "A=1", "-w", "/srv", "-u", "root", "--metadata", "for=test=1", "--team", "red",
         "--rm", "--timeout", "60", "-p", "8080:80", "--allow", "example.com"]
    )  # fmt: skip
    record = kept_options.make_record(options, "quiet", root_options.choose(options))
    assert record.name == "web" and record.team == "red"
    assert (record.kernel, record.image, record.cmdline) == ("/k", "/i", "quiet")
    assert (record.memory_bytes, record.cpus, record.timeout_s) == (1 << 30, 2, 60)
    assert (record.envs, record.metadata) == ({"A": "1"}, {"for": "test=1"})
    assert (record.workdir, record.user, record.removes_itself) == ("/srv", "root", True)
    assert record.net is not None
    assert record.net["publish"] == ["127.0.0.1:8080:80"]
    assert record.net["allow"] == ["example.com"]
    assert not record.is_owned
    record.to_json()
