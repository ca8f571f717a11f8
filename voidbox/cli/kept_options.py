"""The options of `voidbox run` that make a sandbox be seen by other commands, and its record."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from voidbox.cli import limit_options, network
from voidbox.cli.parser import parse_environment, parse_number, parse_optional_duration
from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

if TYPE_CHECKING:  # the usual `voidbox run` needs none
    from voidbox.sandbox.image_choice import Choice
    from voidbox.sandbox.state.records import SandboxRecord
    from voidbox.sandbox.state.store import Store

# Options that only make sense where this process is the VM, with what they are unless given.
_IN_PROCESS = {
    "--console": False,
    "--console-log": None,
    "--stats": None,
    "--self-extract": False,
    "--cid": "3",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what makes a sandbox be seen by other commands."""
    group = parser.add_argument_group("sandbox", "The sandbox as other commands see it.")
    group.add_argument(
        "-d", "--detach", action="store_true", help="print its name and leave it running"
    )
    group.add_argument("--rm", action="store_true", help="keep nothing of it once it has ended")
    group.add_argument("--name", metavar="NAME", help="what it is called; a new name by default")
    group.add_argument(
        "--snapshot",
        metavar="NAME",
        help="go on from a snapshot instead of booting, as a sandbox of its own",
    )
    group.add_argument(
        "--cold", action="store_true", help="with --detach or --name: boot, use no template"
    )
    group.add_argument("--team", metavar="NAME", help="whose sandboxes exchange messages with it")
    group.add_argument(
        "--metadata", action="append", default=[], metavar="KEY=VALUE", help="a note; repeatable"
    )
    group.add_argument(
        "--idle-timeout",
        metavar="TIME",
        help="stop it when nobody has asked anything of it, and no command has run, for so long",
    )
    group.add_argument(
        "--json", action="store_true", help="with --detach: print the sandbox as JSON"
    )
    limit_options.add_options(group)
    group.add_argument(
        "--jail",
        metavar="LEVEL",
        help="default: what this host has of it; strict: all of it, or no start; off. See doctor",
    )


def is_wanted(options: argparse.Namespace) -> bool:
    """Whether the sandbox has a process of its own, which other commands see."""
    return bool(
        options.detach
        or options.name is not None
        or options.team is not None
        or options.metadata
        or limit_options.parse(options)
        or options.snapshot is not None
        or options.secret
        or options.http
    )


def make_record(options: argparse.Namespace, cmdline: str, choice: Choice) -> SandboxRecord:
    """Return the record of the sandbox that the options ask for, with what it boots.

    Raises:
        ConfigError: they do not fit together, or one cannot be read.
    """
    from voidbox.sdk import draft

    for option, default in _IN_PROCESS.items():
        if getattr(options, option[2:].replace("-", "_")) != default:
            raise ConfigError(
                f"{option} is for a VM that is this command's own: leave out --detach, --name, "
                "--team and --metadata"
            )
    if options.detach and options.tty:
        raise ConfigError("--tty does not go with --detach: voidbox shell NAME gives a terminal")
    if options.vsock not in (None, "vhost", "none"):
        raise ConfigError("--vsock PATH: this sandbox has a socket of its own; give vhost or none")
    workspace = parse_workspace(options.workspace)
    record = draft.make_record(
        kernel=options.kernel,
        image=choice,
        memory=options.memory,
        cpus=parse_number(options.cpus, "--cpus"),
        envs=parse_environment(options.env),
        secret_envs=parse_secrets(options.secret_env),
        metadata=parse_metadata(options.metadata),
        timeout=parse_optional_duration(options.timeout, "--timeout"),
        name=options.name,
        workdir=options.workdir,
        user=options.user,
        net=_network(options),
        vsock=options.vsock or "unix",
        team=options.team,
        cmdline=cmdline,
        is_owned=not options.detach,
        disks=options.disk,
        workspace=workspace.path,
        workspace_mode=workspace.mode,
        workspace_cache=workspace.cache,
        jail=options.jail,
        limits=limit_options.parse(options),
        volumes=options.volume,
        idle_timeout=parse_optional_duration(options.idle_timeout, "--idle-timeout"),
    )
    is_seen = options.detach or options.name is not None or options.team or options.metadata
    return record._replace(removes_itself=options.rm or not is_seen, is_cold=options.cold)


# Options that say what a machine is made of, with what they are unless given, and create()'s names.
_MADE_OF: tuple[tuple[str, object, str], ...] = (
    ("kernel", None, "kernel"),
    ("image", None, "image"),
    ("initramfs", None, "image"),
    ("disk_size", None, "disk_size"),
    ("init", None, "init"),
    ("memory", "512M", "memory"),
    ("cpus", "1", "cpus"),
    ("disk", [], "disks"),
    ("cmdline", "", "cmdline"),
    ("vsock", None, "vsock"),
    ("volume", [], "volumes"),
)


def make_restored(options: argparse.Namespace, store: Store) -> SandboxRecord:
    """Return the record of the sandbox that is to be made of --snapshot.

    Raises:
        ConfigError: there is none, or the options ask for what cannot be changed of it.
    """
    from voidbox.sdk import snapshots

    found = snapshots.find(store, options.snapshot)
    workspace = parse_workspace(options.workspace)
    rules: dict[str, object] = {
        "allow": options.allow or None,
        "deny": options.deny or None,
        "allow_host_ports": [parse_number(p, "--allow-host") for p in options.allow_host] or None,
        "rate_bytes_s": network.parse_rate(options.net_rate, "--net-rate"),
        "pcap": options.pcap,
        "block_network": True if options.net == "off" else None,
    }
    record = snapshots.make_record(
        found.record,
        fixed={
            name: getattr(options, option)
            for option, default, name in _MADE_OF
            if getattr(options, option) != default
        },
        net_given={name: value for name, value in rules.items() if value is not None},
        publish=options.publish or None,
        envs=parse_environment(options.env),
        secret_envs=parse_secrets(options.secret_env),
        metadata=parse_metadata(options.metadata),
        timeout=parse_optional_duration(options.timeout, "--timeout"),
        idle_timeout=parse_optional_duration(options.idle_timeout, "--idle-timeout"),
        name=options.name,
        workdir=options.workdir,
        user=options.user,
        team=options.team,
        workspace=workspace.path,
        workspace_mode=workspace.mode,
        jail=options.jail,
        limits=limit_options.parse(options),
        is_owned=not options.detach,
    )
    return record._replace(removes_itself=options.rm)


def guard(
    record: SandboxRecord, options: argparse.Namespace
) -> tuple[SandboxRecord, dict[str, str]]:
    """Return a record with --secret and --http, and the secrets' values.

    Raises:
        ConfigError: one cannot be.
    """
    if not options.secret and not options.http:
        return record, {}
    from voidbox.sandbox.guarding import guard
    from voidbox.secrets.spec import parse_secret

    return guard(record, [parse_secret(text) for text in options.secret], options.http)


def parse_secrets(words: list[str]) -> dict[str, str]:
    """Return the variables of NAME or NAME=VALUE words.

    Raises:
        ConfigError: a word has no name, or there is no such variable here.
    """
    if any(word.startswith("=") for word in words):  # not to be shown
        raise ConfigError("--secret-env: give NAME, or NAME=VALUE")
    found = parse_environment(words, "--secret-env")
    for word in words:
        if "=" not in word and word not in found:
            raise ConfigError(f"--secret-env {word}: there is no such variable here")
    return found


class Workspace(NamedTuple):
    """A folder of this host at /workspace; see draft.make_record()."""

    path: str | None = None
    mode: str = "copy"
    cache: str = "auto"


def parse_workspace(text: str | None) -> Workspace:
    """Return what DIR[:copy|ro|rw][,cache=auto|always|none] asks for.

    Raises:
        ConfigError: there is no such folder.
    """
    if text is None:
        return Workspace()
    from voidbox.sdk import draft

    rest, is_cached, cache = text.rpartition(",cache=")
    if not is_cached:
        rest, cache = text, Workspace().cache
    path, colon, mode = rest.rpartition(":")
    if not colon or mode not in draft.WORKSPACE_MODES:
        path, mode = rest, "copy"
    draft.check_cache(cache, mode)
    return Workspace(draft.check_workspace(path), mode, cache)


def parse_metadata(words: list[str]) -> dict[str, str]:
    metadata = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ConfigError(f"--metadata {word}: give KEY=VALUE")
        metadata[key] = value
    return metadata


def _network(options: argparse.Namespace) -> dict[str, object] | None:
    """Return the network as a record keeps it."""
    config = network.parse(options, is_console=False)
    if config is None:
        return None
    return {
        "allow": list(config.allow),
        "deny": list(config.deny),
        "allow_host_ports": list(config.allow_host_ports),
        "publish": [str(forward) for forward in config.publish],
        "rate_bytes_s": config.rate_bytes_s,
        "pcap": os.path.abspath(config.pcap) if config.pcap is not None else None,
    }
