"""`voidbox completion`: scripts with which bash, zsh and fish complete voidbox's words."""

from __future__ import annotations

import argparse

from voidbox.cli import exit_status, image, snapshot, volume
from voidbox.cli.parser import make_parser
from voidbox.cli.verbs import VERBS, module_of

_EPILOG = """\
examples:
  voidbox completion bash > ~/.local/share/bash-completion/completions/voidbox
  voidbox completion zsh > ~/.zfunc/_voidbox
  voidbox completion fish > ~/.config/fish/completions/voidbox.fish
"""
# Verbs whose words are sandboxes; of any state, where they work on those that have ended too.
_RUNNING = (
    "exec",
    "fork",
    "suspend",
    "shell",
    "cp",
    "send",
    "port",
    "stats",
    "stop",
    "kill",
    "pause",
    "limit",
)
_ANY = ("inspect", "logs", "rename", "rm", "resume")

_BASH = """\
# voidbox completion for bash
_voidbox() {
    local current=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]} words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="@VERBS@"
    elif [[ $current == -* ]]; then
        case $verb in
@OPTIONS@
        esac
    else
        case $verb in
            @RUNNING@) words=$(voidbox ps --quiet 2>/dev/null) ;;
            @ANY@) words=$(voidbox ps --all --quiet 2>/dev/null) ;;
            completion) words="bash zsh fish" ;;
        esac
        case $verb in cp|run) compopt -o default ;; esac
        [ "$verb" = pool ] && [ "$COMP_CWORD" -eq 2 ] && words="run"
        [ "$verb" = port ] && [ "$COMP_CWORD" -eq 2 ] && words="add rm ls wait"
        case $verb:$COMP_CWORD:${COMP_WORDS[2]} in
            image:2:*) words="@IMAGE@" ;;
            image:*:import) compopt -o default ;;
            image:*:*) words=$(voidbox image ls --quiet 2>/dev/null) ;;
            snapshot:2:*) words="@SNAPSHOT@" ;;
            snapshot:3:create) words=$(voidbox ps --quiet 2>/dev/null) ;;
            snapshot:*:*) words=$(voidbox snapshot ls --quiet 2>/dev/null) ;;
            volume:2:*) words="@VOLUME@" ;;
            volume:*:*) words=$(voidbox volume ls --quiet 2>/dev/null) ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _voidbox voidbox
"""

_ZSH = """\
#compdef voidbox
# voidbox completion for zsh
_voidbox() {
    local verb=$words[2]
    if (( CURRENT == 2 )); then
        local -a verbs=(
@VERBS@
        )
        _describe verb verbs
    elif [[ $PREFIX == -* ]]; then
        case $verb in
@OPTIONS@
        esac
    else
        case $verb in
            pool) (( CURRENT == 3 )) && { compadd run; return } ;;
            port) (( CURRENT == 3 )) && { compadd add rm ls wait; return } ;;
            image)
                if (( CURRENT == 3 )); then
                    compadd @IMAGE@
                elif [[ $words[3] == import ]]; then
                    _files
                else
                    compadd -- ${(f)"$(voidbox image ls --quiet 2>/dev/null)"}
                fi
                return ;;
            snapshot)
                if (( CURRENT == 3 )); then
                    compadd @SNAPSHOT@
                elif [[ $words[3] == create ]]; then
                    compadd -- ${(f)"$(voidbox ps --quiet 2>/dev/null)"}
                else
                    compadd -- ${(f)"$(voidbox snapshot ls --quiet 2>/dev/null)"}
                fi
                return ;;
            volume)
                if (( CURRENT == 3 )); then
                    compadd @VOLUME@
                else
                    compadd -- ${(f)"$(voidbox volume ls --quiet 2>/dev/null)"}
                fi
                return ;;
            completion) compadd bash zsh fish; return ;;
        esac
        case $verb in
            @RUNNING@) compadd -- ${(f)"$(voidbox ps --quiet 2>/dev/null)"} ;;
            @ANY@) compadd -- ${(f)"$(voidbox ps --all --quiet 2>/dev/null)"} ;;
        esac
        case $verb in cp|run) _files ;; esac
    fi
}
if [ "$funcstack[1]" = _voidbox ]; then
    _voidbox "$@"
else
    compdef _voidbox voidbox
fi
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("completion", "Print a shell's completion script for voidbox.", _EPILOG)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    shell = make_options().parse_args(argv).shell
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](), end="")
    return exit_status.OK


def options_of(verb: str) -> list[tuple[list[str], str]]:
    """Return a verb's options, each with all its spellings and its help."""
    module = __import__(module_of(verb), fromlist=["make_options"])
    parser: argparse.ArgumentParser = module.make_options()
    return [
        (list(action.option_strings), (action.help or "").replace("%%", "%"))
        for action in parser._actions
        if action.option_strings
    ]


def _bash() -> str:
    lines = [f'            {verb}) words="{" ".join(_spellings(verb))}" ;;' for verb in VERBS]
    return _fill(_BASH, " ".join(VERBS), lines)


def _zsh() -> str:
    verbs = "\n".join(f"            {_quote(f'{verb}:{text}')}" for verb, text in VERBS.items())
    lines = [f"            {verb}) compadd -- {' '.join(_spellings(verb))} ;;" for verb in VERBS]
    return _fill(_ZSH, verbs, lines)


def _fish() -> str:
    lines = ["# voidbox completion for fish", "complete -c voidbox -f"]
    for verb, text in VERBS.items():
        first = "-n __fish_use_subcommand"
        lines.append(f"complete -c voidbox {first} -a {verb} -d {_quote(text)}")
    for verb in VERBS:
        condition = f"-n '__fish_seen_subcommand_from {verb}'"
        for spellings, text in options_of(verb):
            names = " ".join(
                f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}"
                for word in spellings
            )
            lines.append(f"complete -c voidbox {condition} {names} -d {_quote(text)}")
        which = "ps --quiet" if verb in _RUNNING else "ps --all --quiet"
        if verb in _RUNNING + _ANY:
            lines.append(f"complete -c voidbox {condition} -a '(voidbox {which} 2>/dev/null)'")
        if verb in ("cp", "run"):
            lines.append(f"complete -c voidbox {condition} -F")
    for verb, words in (
        ("pool", "run"),
        ("port", "add rm ls wait"),
        ("image", " ".join(image.ACTIONS)),
        ("volume", " ".join(volume.ACTIONS)),
        ("snapshot", " ".join(snapshot.ACTIONS)),
        ("completion", "bash zsh fish"),
    ):
        lines.append(
            f"complete -c voidbox -n '__fish_seen_subcommand_from {verb}' -a {_quote(words)}"
        )
    return "\n".join(lines) + "\n"


def _fill(template: str, verbs: str, options: list[str]) -> str:
    return (
        template.replace("@VERBS@", verbs)
        .replace("@OPTIONS@", "\n".join(options))
        .replace("@RUNNING@", "|".join(_RUNNING))
        .replace("@ANY@", "|".join(_ANY))
        .replace("@IMAGE@", " ".join(image.ACTIONS))
        .replace("@VOLUME@", " ".join(volume.ACTIONS))
        .replace("@SNAPSHOT@", " ".join(snapshot.ACTIONS))
    )


def _spellings(verb: str) -> list[str]:
    return [word for spellings, _ in options_of(verb) for word in spellings]


def _quote(text: str) -> str:
    quoted = text.replace("'", "'\\''")
    return f"'{quoted}'"
