"""The verbs, in the groups that `voidbox --help` shows."""

from __future__ import annotations

GROUPS = {
    "run": {
        "run": "a command or a shell in a fresh sandbox; with --detach one that stays",
        "fork": "make sandboxes that go on from where one is",
        "pool": "a command for each line of input, each in a fresh sandbox",
        "exec": "run a command in a sandbox that runs",
        "shell": "open a shell in it",
        "cp": "copy files and folders into or out of it",
        "workspace": "copy its workspace's changes back: pull",
        "send": "send a message to it",
        "secret": "change or list its secrets: set, ls",
        "port": "offer its ports on the host: add, rm, ls; wait for one",
        "mcp": "give a coding agent sandboxes, by the Model Context Protocol",
        "serve": "offer sandboxes over HTTP, as E2B's SDKs want them",
    },
    "look": {
        "ps": "list sandboxes",
        "inspect": "show all that is known of them",
        "logs": "show what a guest's console showed, or what voidbox says",
        "stats": "show what they use of processor, memory and network",
    },
    "end": {
        "stop": "shut sandboxes down",
        "kill": "end them at once",
        "limit": "limit what one uses of processor, disks and network",
        "pause": "halt them",
        "suspend": "bring them to the disk",
        "resume": "let them go on",
        "rename": "give one another name",
        "rm": "remove those that have ended",
        "prune": "remove all that have ended",
    },
    "images": {
        "snapshot": "save sandboxes: create, ls, inspect, verify, rm, prune",
        "image": "pull, import, build, ls, inspect, rm, prune",
        "volume": "disks that outlive sandboxes: create, ls, inspect, rm",
    },
    "host": {
        "setup": "make the kernel and the image that run takes by default",
        "doctor": "check that this host can run VMs, and say what to do if not",
        "ray-node": "print what starts Ray here, with sandboxes for voidbox.ray",
        "completion": "print what makes a shell complete voidbox's words",
    },
}
TITLES = {
    "run": "sandboxes and what runs in them",
    "look": "what there is",
    "end": "their life",
    "images": "what they are made from, and what outlives them",
    "host": "this host",
}
# What other programs call them.
_ELSEWHERE = {
    "list": "ps",
    "xargs": "pool",
    "map": "pool",
    "parallel": "pool",
    "ls": "ps",
    "delete": "rm",
    "remove": "rm",
    "copy": "cp",
    "create": "run",
    "start": "run",
    "ssh": "shell",
    "attach": "shell",
    "top": "stats",
    "unpause": "resume",
    "images": "image",
    "pull": "image",
    "restore": "run",
    "branch": "fork",
    "clone": "fork",
    "checkpoint": "snapshot",
    "hibernate": "suspend",
    "wake": "resume",
    "install": "setup",
    "init": "setup",
}
# What has nothing to do with sandboxes that a server may have.
OF_THIS_HOST = frozenset((*GROUPS["host"], "serve", "image", "volume"))
VERBS = {verb: text for group in GROUPS.values() for verb, text in group.items()}


def module_of(verb: str) -> str:
    """Return the name of the module that has a verb's main() and make_options()."""
    return f"voidbox.cli.{verb.replace('-', '_')}"


def usage() -> str:
    """Return what `voidbox --help` prints."""
    lines = ["usage: voidbox VERB [OPTION …]"]
    for group, verbs in GROUPS.items():
        lines += ["", f"{TITLES[group]}:"]
        lines += [f"  {verb:11} {text}" for verb, text in verbs.items()]
    lines += [
        "",
        "  voidbox --remote URL VERB … has those of a `voidbox serve`; $VOIDBOX_REMOTE does too.",
        "  voidbox VERB --help tells more, with examples; voidbox --version prints the version.",
        "",
    ]
    return "\n".join(lines)


def nearest(word: str) -> str:
    """Return the verb that a user may have meant; "" if none is like the word."""
    import difflib  # only after a mistake

    found = difflib.get_close_matches(word, (*VERBS, *_ELSEWHERE), 1, 0.6)
    return _ELSEWHERE.get(found[0], found[0]) if found else ""
