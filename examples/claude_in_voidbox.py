"""A coding agent in a sandbox: it plans, then applies its plan, in two turns over one sandbox.

    examples/claude_in_voidbox.py                     a stand-in for the agent
    examples/claude_in_voidbox.py --real --mock-api   Claude Code, and a stand-in for its API
    examples/claude_in_voidbox.py --real              Claude Code, with your ANTHROPIC_API_KEY

The first needs nothing: no key, no network, no image of its own; and where no VM can run, it shows
the same without one. For the others scripts/build_claude_rootfs.sh makes an image with the Claude
Code CLI in it, from npm: it is under Anthropic's terms, not ours.

The agent works on a folder of this host, which the guest has at /workspace, and whose changes come
back. With --real it runs as uid 1000, without asking for permissions, for the VM is the wall; and
it reaches nothing but the API, with a key that is put in on the way: it never enters the guest.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import logging
import os
import shlex
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from local_guest import LocalGuest
from mock_anthropic_api import MockApi

from voidbox import Sandbox, Secret, VoidboxError, defaults
from voidbox.agent.core import printable
from voidbox.cli import doctor
from voidbox.cli.doctor_check import FAIL

API_HOST = "api.anthropic.com"
MOCK_HOST = "host.voidbox.internal"  # this host, as the guest calls it
KEY = "ANTHROPIC_API_KEY"
IMAGE = "claude"  # scripts/build_claude_rootfs.sh gives it this name
TURN_S = 900.0
SANDBOX_S = 3600.0

# What there is to do, unless --task and --folder say something else.
TASK = "The tests in test_calc.py fail: find out why, and mend calc.py."
PROJECT = {
    "calc.py": """\
def total(numbers):
    result = 0
    for number in numbers:
        result -= number
    return result
""",
    "test_calc.py": """\
from calc import total

assert total([1, 2, 3]) == 6, f"total([1, 2, 3]) is {total([1, 2, 3])}"
print("all tests passed")
""",
}
TESTS = ("test_calc.py",)


class DemoFailed(Exception):
    """The agent did not do what it should; one line says what."""


class Agent(NamedTuple):
    """The program that is asked.

    Attributes:
        command: how it is called.
        envs: what it needs.
        plan, apply: options of the two turns.
        memory: MiB that its sandbox needs.
    """

    command: Sequence[str]
    envs: Mapping[str, str]
    plan: Sequence[str] = ()
    apply: Sequence[str] = ()
    memory: int = 512


# In the first turn it may look and no more; in the second it may do whatever uid 1000 may.
CLAUDE = Agent(
    command=("claude",),
    envs={"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"},
    plan=("--allowedTools", "Read,Grep,Glob"),
    apply=("--dangerously-skip-permissions",),
    memory=2048,
)
STAND_IN = Agent(command=("python3", "/tmp/stand_in_agent.py"), envs={})


def main() -> int:
    """Run the demo; returns the exit status."""
    options = parse_options()
    _show_log()
    try:
        with contextlib.ExitStack() as stack:
            folder = options.folder or _make_project(stack)
            before = _read(folder)
            if options.real:
                _run_real(stack, options, folder)
            else:
                _run_mock(folder)
            _show_changes(before, _read(folder), folder)
    except (VoidboxError, DemoFailed) as error:
        say(f"Demo failed: {error}")
        return 1
    say("Demo completed")
    return 0


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description="A coding agent in a sandbox: plan, then apply.", allow_abbrev=False
    )
    parser.add_argument("--real", action="store_true", help="run the Claude Code CLI")
    parser.add_argument("--mock-api", action="store_true", help="with --real: no key, no network")
    parser.add_argument(
        "--key-in-guest",
        action="store_true",
        help="with --real: the guest has the key itself, and reaches the API's host alone",
    )
    parser.add_argument("--image", default=IMAGE, help="with --real: an image with the CLI in it")
    parser.add_argument("--memory", default=CLAUDE.memory, help="with --real: such as 4G")
    parser.add_argument("--model", help="with --real: another than the CLI's own choice")
    parser.add_argument("--task", help="with --real: what to do")
    parser.add_argument("--folder", type=Path, help="with --real: on which files of this host")
    options = parser.parse_args()
    others = (options.mock_api, options.key_in_guest, options.task, options.folder)
    if not options.real and any(others):
        parser.error("--mock-api, --key-in-guest, --task and --folder go with --real")
    if options.mock_api and options.key_in_guest:
        parser.error("--mock-api needs no key in the guest: it is put in on the way")
    if options.mock_api and (options.task or options.folder):
        parser.error("the API's stand-in knows one task alone: leave --task and --folder out")
    if bool(options.task) != bool(options.folder):
        parser.error("give --task and --folder both, or neither")
    if options.folder is not None and not options.folder.is_dir():
        parser.error(f"--folder {options.folder}: there is no such folder")
    return options


# --- the two modes ----------------------------------------------------------------------------


def _run_mock(folder: Path) -> None:
    why = no_vm_reason()
    if why:
        say(f"no VM here ({why}): the guest's agent runs as a local process, NOTHING IS ISOLATED")
        say("a Unix socket takes the place of vsock")
        with LocalGuest() as guest:
            guest.files.upload(folder, ".")
            script = guest.workspace.parent / "stand_in_agent.py"
            script.write_bytes(_stand_in_source())
            two_turns(guest, STAND_IN._replace(command=(sys.executable, str(script))), TASK)
            run_tests(guest, sys.executable)
            guest.files.download(".", folder)
        return
    with _sandbox(folder, STAND_IN, block_network=True) as sandbox:
        sandbox.files.write(STAND_IN.command[-1], _stand_in_source())
        two_turns(sandbox, STAND_IN, TASK)
        run_tests(sandbox)


def _run_real(stack: contextlib.ExitStack, options: argparse.Namespace, folder: Path) -> None:
    why = no_vm_reason()
    if why:
        raise DemoFailed(f"--real needs a VM, but {why}; scripts/with-kvm -- COMMAND has one")
    way = _open_way(stack, options)
    model = ("--model", options.model) if options.model else ()
    agent = CLAUDE._replace(
        command=(*CLAUDE.command, *model), envs={**CLAUDE.envs, **way.envs}, memory=options.memory
    )
    say(way.told)
    with _sandbox(folder, agent, image=options.image, user="sandbox", **way.network) as sandbox:
        version = run(sandbox, [*CLAUDE.command, "--version"], agent.envs)
        say(f"  {printable(version.strip())}, uid {run(sandbox, ['id', '-u'], {}).strip()}")
        two_turns(sandbox, agent, options.task or TASK)
        if not options.task:
            run_tests(sandbox)


class _Way(NamedTuple):
    """How the guest gets to the API: the network that it has, and the variables that say so."""

    network: Mapping[str, Any]
    envs: Mapping[str, str]
    told: str


def _open_way(stack: contextlib.ExitStack, options: argparse.Namespace) -> _Way:
    if options.mock_api:
        return _open_mock(stack)
    key = os.environ.get(KEY, "")
    if not key:
        raise DemoFailed(f"set {KEY}, which stays on this host; or try --mock-api")
    network: dict[str, Any] = {"allow": [f"{API_HOST}:443"]}
    if options.key_in_guest:
        told = f"the guest has the key, and reaches {API_HOST}, and nothing else"
        return _Way(network, {KEY: key}, told)
    return _Way({**network, **_guarded(API_HOST, key)}, {}, _told(API_HOST))


def _open_mock(stack: contextlib.ExitStack) -> _Way:
    """Serve the API's stand-in by TLS, with a certificate that this host is told to trust."""
    from voidbox.secrets.authority import check_extra, issue, make_authority, server_context

    check_extra()
    world = make_authority([MOCK_HOST])
    trusted = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "world.pem"
    trusted.write_text(world.certificate)
    os.environ["SSL_CERT_FILE"] = str(trusted)
    api = stack.enter_context(
        MockApi(
            on_request=lambda line: say(f"  api: {line}"),
            context=server_context(issue(world, MOCK_HOST), ["http/1.1"]),
        )
    )
    place = f"{MOCK_HOST}:{api.port}"
    return _Way(
        # The gateway's port is all that is open: an empty list of names denies the rest.
        {
            "allow_host_ports": [api.port],
            "outbound_domain_allowlist": [],
            **_guarded(place, "the real key"),
        },
        {"ANTHROPIC_BASE_URL": f"https://{place}"},
        _told(place),
    )


def _guarded(place: str, key: str) -> dict[str, Any]:
    """Return what lets the guest use a key that it does not have, for the Messages API alone."""
    return {"secrets": [Secret(KEY, [place], key)], "http": [f"POST {place}/v1/messages*"]}


def _told(place: str) -> str:
    return f"the key stays here: the guest has a placeholder, and reaches {place}, and nothing else"


def no_vm_reason() -> str:
    """Return why no VM can run here; "" if one can."""
    if not os.environ.get("VOIDBOX_LAB"):  # made for it, though slow
        for check in doctor.examine():
            if check.status == FAIL:
                return check.found
    try:
        defaults.find_image(defaults.find_kernel())
    except VoidboxError as error:
        return str(error).partition(":")[0]
    return ""


@contextlib.contextmanager
def _sandbox(folder: Path, agent: Agent, **options: Any) -> Iterator[Sandbox]:
    """Yield a sandbox with a copy of the folder in its /workspace, whose changes come back."""
    with Sandbox.create(
        memory=agent.memory, timeout=SANDBOX_S, workspace=folder, **options
    ) as sandbox:
        say(f"sandbox {sandbox.name}: a VM with {sandbox.get_info().memory_bytes >> 20} MiB")
        yield sandbox
        copied = sandbox.sync_back()
        say(f"copied back: {copied}")
        for text in (*copied.conflicts, *copied.skipped, *copied.failed):
            say(f"  {text}")


# --- the demo ---------------------------------------------------------------------------------


def two_turns(sandbox: Sandbox | LocalGuest, agent: Agent, task: str) -> None:
    """Have the agent plan, then have the same session of it apply its plan.

    Raises:
        DemoFailed: a turn failed.
    """
    session = str(uuid.uuid4())
    prompt = f"{task} Make a plan, in a few lines. Change nothing yet."
    turn(sandbox, "plan", agent, prompt, ["--session-id", session, *agent.plan])
    turn(sandbox, "apply", agent, "Apply your plan.", ["--resume", session, *agent.apply])


def turn(
    sandbox: Sandbox | LocalGuest, name: str, agent: Agent, prompt: str, options: Sequence[str]
) -> None:
    """Run one turn, and say what came of it."""
    argv = [*agent.command, "-p", prompt, "--output-format", "json", *options]
    say(f"{name}: $ {printable(shlex.join(argv))}")
    try:
        answer = json.loads(run(sandbox, argv, agent.envs))
        text, is_error = str(answer["result"]), answer["is_error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DemoFailed(f"{name}: the agent's answer makes no sense") from None
    for line in text.splitlines():
        say(f"  {printable(line)}")
    if is_error:
        raise DemoFailed(f"{name}: the agent says that it failed")


def run_tests(sandbox: Sandbox | LocalGuest, python: str = "python3") -> None:
    """Run the project's tests, in the sandbox: what an agent wrote is not run on the host."""
    say(f"tests: {run(sandbox, [python, *TESTS], {}).strip()}")


def run(sandbox: Sandbox | LocalGuest, argv: Sequence[str], envs: Mapping[str, str]) -> str:
    """Run a command; return what it wrote.

    Raises:
        DemoFailed: its exit code is not 0.
    """
    # Python is to leave no compiled files, which would come back with the changes.
    envs = {"PYTHONDONTWRITEBYTECODE": "1", **envs}
    result = sandbox.commands.run(list(argv), envs=envs, timeout=TURN_S)
    say(f"ExecResponse received exit_code={result.exit_code}")
    if result.exit_code:
        words = (result.error or result.stderr or result.stdout).strip() or "it wrote nothing"
        raise DemoFailed(f"{argv[0]}: exit code {result.exit_code}: {printable(words[-500:])}")
    return result.stdout


# --- what the host sees -----------------------------------------------------------------------


def _make_project(stack: contextlib.ExitStack) -> Path:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="claude-demo-")))
    for name, text in PROJECT.items():
        (folder / name).write_text(text)
    return folder


def _stand_in_source() -> bytes:
    return Path(__file__).with_name("stand_in_agent.py").read_bytes()


def _read(folder: Path) -> dict[str, str]:
    """Return the texts of a folder's files. The guest's links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and ".git" not in path.parts:
            found[str(path.relative_to(folder))] = path.read_text(errors="replace")
    return found


def _show_changes(before: dict[str, str], after: dict[str, str], folder: Path) -> None:
    if before == after:
        raise DemoFailed(f"nothing has changed in {folder}")
    say(f"changes on the host, in {folder}:")
    for name in sorted(before.keys() | after.keys()):
        old, new = (texts.get(name, "").splitlines() for texts in (before, after))
        for line in difflib.unified_diff(old, new, name, name, n=1, lineterm=""):
            say(f"  {printable(line)}")


class _Log(logging.Handler):
    """Shows what voidbox says of its connections: attempts, the handshake, what was copied."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a line, "NAME: TEXT", without the sandbox's name."""
        say(record.getMessage().partition(": ")[2])


def _show_log() -> None:
    logger = logging.getLogger("voidbox")
    logger.addHandler(_Log())
    logger.setLevel(logging.INFO)


def say(text: str) -> None:
    """Print a line, at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
