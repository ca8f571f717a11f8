"""What the command line says of words that it does not know, and of times."""

from __future__ import annotations

import socket

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.sandbox.owned import wait_until
from voidbox.cli import exit_status
from voidbox.cli.parser import Parser, parse_duration
from voidbox.cli.verbs import VERBS, module_of
from voidbox.errors import ConfigError

pytestmark = pytest.mark.slow


def parser_of(verb: str) -> Parser:
    parser: Parser = __import__(module_of(verb), fromlist=["make_options"]).make_options()
    return parser


def said_of(verb: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that is said of wrong words."""
    with pytest.raises(SystemExit) as caught:
        parser_of(verb).parse_args(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == exit_status.USAGE
    return line


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_suggests_the_option_that_was_meant(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(verb)
    for option in parser._options():
        wrong = f"{option[:-2]}{option[-1]}{option[-2]}x"  # two letters swapped, one too many
        action = next((a for a in parser._actions if option in a.option_strings), None)
        if action is None or len(option) < 6 or wrong in parser._options():
            continue
        words = [action_word(a) for a in parser._actions if not a.option_strings]
        if "" in words:
            continue  # an action's word stands first, and has options of its own
        assert f"there is no option {wrong}: do you mean --" in said_of(
            verb, [wrong, *words], capsys
        )


def action_word(action: object) -> str:
    choices = getattr(action, "choices", None)
    return "" if isinstance(choices, dict) else str(next(iter(choices or ["word"])))


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("run", ["--memroy", "1G"], "there is no option --memroy: do you mean --memory?"),
        ("run", ["--memroy=1G"], "there is no option --memroy: do you mean --memory?"),
        ("run", ["--publsh", "1:2"], "do you mean --publish?"),
        ("run", ["--zzzzzz"], "there is no option --zzzzzz: voidbox run --help lists them"),
        ("run", ["-x"], "there is no option -x: voidbox run --help lists them"),
        ("run", ["ls", "-la"], "a COMMAND comes behind --: voidbox run [OPTION …] -- ls -la"),
        ("run", ["--rm", "python:3.12"], "an image is given by --image python:3.12, and a COMM"),
        ("run", ["-it", "python:3.12", "bash"], "an image is given by --image python:3.12"),
        ("run", ["--rm", "./build:x"], "a COMMAND comes behind --: "),
        ("run", ["-v", "/a:/b"], "-v is --verbose here: --volume /a:/b shares a folder"),
        ("run", ["-v/a:/b"], "-v is --verbose here: --volume /a:/b shares a folder"),
        ("run", ["-v", "cache:/c", "--rm"], "-v is --verbose here: --volume cache:/c"),
        ("run", ["--mount", "type=bind"], "there is no option --mount: --volume SOURCE:TARGET"),
        ("run", ["--network", "none"], "there is no option --network: --net off"),
        ("run", ["-m", "1G"], "there is no option -m: --memory"),
        ("run", ["--entrypont", "x"], "do you mean --entrypoint?"),
        ("shell", ["--usr", "root", "box"], "do you mean --user?"),
        ("exec", ["--worksir", "/", "box", "ls"], "do you mean --workdir?"),
        ("stop", ["box", "--timout", "3"], "do you mean --timeout?"),
        ("ps", ["builder"], "nobody expects builder: voidbox ps --help tells what it takes"),
        ("image", ["pull", "--platfrom", "x", "python"], "do you mean --platform?"),
        ("image", ["pul", "python"], "there is no pul: do you mean pull?"),
        ("image", ["zzz"], "there is no zzz: choose pull, import, build, ls, inspect, rm or prune"),
        ("port", ["lst"], "there is no lst: do you mean ls?"),
        ("volume", ["create", "--sise", "1G", "x"], "do you mean --size?"),
        ("completion", ["tcsh"], "there is no tcsh: choose bash, zsh or fish"),
        ("run", ["--net", "of"], "there is no --net of: do you mean off?"),
    ],
)
def test_what_was_meant(
    verb: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said_of(verb, words, capsys)
    assert line.startswith(f"voidbox {verb}: ") and said in line


def test_docker_s_it_is_understood(cli: Cli) -> None:
    for verb, words in (("run", ["-it"]), ("run", ["-ti"]), ("exec", ["-it", "box", "sh"])):
        options = parser_of(verb).parse_args(words)
        assert options.interactive and options.tty
    assert parser_of("shell").parse_args(["-it", "box"]).name == "box"
    assert parser_of("run").parse_args(["-i"]).tty is None
    assert cli.ok("run", "--name", "box", "-i", *cli.machine(), "--", "cat", input="in") == "in"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400), ("1h30m", 5400),
        ("500ms", 0.5), ("0.25", 0.25), ("1d", 86400), ("1m30s", 90), ("2.5", 2.5),
    ],
)  # fmt: skip
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text, "--timeout") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-1", "10 m", "m", "1w", "1h30", "1e3", "inf", "nan", "h1", "1M", "٣"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match="--timeout .*: give a time above 0, such as 90, 90s, 10"):
        parse_duration(text, "--timeout")


def test_every_verb_takes_times_with_units(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", "--timeout", "10m", *cli.machine())
    assert cli.json("inspect", "box")[0]["timeout_s"] == 600
    result = cli("exec", "--timeout", "300ms", "box", "--", "sleep", "60")
    assert (result.returncode, result.stderr) == (
        exit_status.TIMEOUT, "voidbox: the command ran for 0.3 s and was ended\n"
    )  # fmt: skip
    assert cli.ok("stop", "--timeout", "20s", "box") == "box\n"
    for words in (["exec", "--timeout", "1w", "box", "ls"], ["stop", "-t", "soon", "box"],
                  ["run", "--timeout", "never", *cli.machine(), "--", "true"]):  # fmt: skip
        assert "give a time above 0" in cli.refused(*words)


def test_an_idle_sandbox(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", "--idle-timeout", "1h", *cli.machine())
    assert cli.json("inspect", "box")[0]["idle_timeout_s"] == 3600
    run = ["run", "--idle-timeout", "1h", *cli.machine()]
    assert "it goes with --detach" in cli.refused(*run, "--", "true")
    assert "idle_timeout needs vsock" in cli.refused(*run, "-d", "--vsock", "none")
    assert "a time above 0" in cli.refused(*run, "-d", "--idle-timeout", "never")


def test_a_secret_variable(cli: Cli) -> None:
    value = "s3cret"
    cli.environment["TOKEN"] = value
    line = ["sh", "-c", "echo $TOKEN"]
    run = ["run", "--secret-env", "TOKEN", *cli.machine()]
    assert cli.ok(*run, "--name", "one", "--", *line) == f"{value}\n"
    made = cli.folder / "made"
    script = f"echo $TOKEN >{made}; exec sleep 60"
    cli.ok(*run, "-d", "--name", "box", "--env", "TOKEN=shown", "--", "sh", "-c", script)
    wait_until(lambda: made.exists() and made.read_text() == f"{value}\n", "the command runs")
    assert cli.ok("exec", "box", "--", *line) == f"{value}\n"
    (box,) = cli.json("inspect", "box")
    assert (box["secret_envs"], box["envs"]) == (["TOKEN"], {})
    for words in (["inspect", "box"], ["ps", "--json"], ["logs", "--voidbox", "box"]):
        assert value not in cli.ok(*words)
    del cli.environment["TOKEN"]
    assert "there is no such variable here" in cli.refused(*run, "-d")
    message = cli.refused("run", "--secret-env", f"={value}", *cli.machine(), "-d")
    assert message == "--secret-env: give NAME, or NAME=VALUE"


def test_waiting_for_a_port(cli: Cli) -> None:
    cli.launch("box")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
        result = cli("port", "wait", "box", port, "--timeout", "300ms")
        assert result.returncode == exit_status.TIMEOUT
        assert result.stderr == f"voidbox: nothing listens on port {port} of box, after 0.3 s\n"
        server.listen()
        assert cli.ok("port", "wait", "box", port) == ""
    assert "give a positive number" in cli.refused("port", "wait", "box", "http")
    assert "from 1 to 65535" in cli.refused("port", "wait", "box", "70000")
    assert "no sandbox nobody" in cli.refused("port", "wait", "nobody", "80")
