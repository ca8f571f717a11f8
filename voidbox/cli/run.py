"""`voidbox run`: a command or a shell in a fresh VM, or a kernel's console on this terminal.

The VM ends with this process; or, with --detach, --name, --team or --metadata, it
is a sandbox that other commands see: then kept_run does it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from voidbox import defaults
from voidbox.cli import kept_options, network, root_options
from voidbox.cli.log import show_log
from voidbox.cli.parser import (
    add_command_options,
    make_parser,
    parse_environment,
    parse_number,
    parse_optional_duration,
)
from voidbox.errors import ConfigError
from voidbox.file_limit import raise_file_limit
from voidbox.sandbox.worker.orders import JAIL_LOG
from voidbox.vmm.config import (
    DEFAULT_CMDLINE,
    DISK_FORM,
    MachineConfig,
    ShareConfig,
    VsockConfig,
    parse_disk,
    parse_memory,
)

if TYPE_CHECKING:  # what a detached sandbox's command does not need
    from voidbox.sandbox.worker.machine import WorkerMachine

# Options that other programs have, and what does it here.
_ELSEWHERE = {
    "--mount": "--volume SOURCE:TARGET[:ro] shares a folder, or gives a named volume",
    "--network": "--net off leaves the guest alone, --allow RULE says what it may reach",
    "-m": "--memory SIZE",
    "--hostname": "every guest is called voidbox",
    "--privileged": "--user root is root of the guest, which is a machine of its own",
}

_EPILOG = f"""\
With a COMMAND, its input, output and exit status are this one's, and it runs as the user
"sandbox" in /workspace. Without one you get a shell. On a terminal it gets a terminal.
With --image it is the image that says who, where, and what is run without a COMMAND.

With --detach the sandbox stays when this command returns: `voidbox exec`, `shell`, `cp`, `logs`,
`stop` and others work on it by its name, and `voidbox rm` removes it. A COMMAND is then started in
its background. With --name, --team or --metadata alone, the sandbox is seen by those commands as
well, but ends with the COMMAND.

With an initramfs of your own and no COMMAND, or with --console, the guest's serial console is this
terminal in raw mode: Ctrl-A x quits, Ctrl-A Ctrl-A sends Ctrl-A.

exit status, unless it is the COMMAND's:
  0    the guest powered off or rebooted, or you quit
  2    bad arguments or files, or a host that cannot run VMs
  120  the guest's kernel panicked
  121  the guest crashed (a triple fault, say); its registers are shown
  122  the guest's agent did not answer, or was lost
  124  --timeout ran out
  125  voidbox itself failed: a bug
  128+n  ended by signal n

default kernel command line:
  {DEFAULT_CMDLINE}

examples:
  voidbox run -- python3 -c 'print(6 * 7)'
  voidbox run
  voidbox run --image python:3.12 -- python3 -c 'print(6 * 7)'
  voidbox run --detach --name builder --memory 1G
  voidbox run -d --rm --publish 8080:80 -- python3 -m http.server 80
  tar c project | voidbox run -- sh -c 'tar x && make test'
  voidbox run --allow '*.example.com:443' --allow example.com:443 -- sh build.sh
  voidbox run --publish 8080:80 -- python3 -m http.server 80
  voidbox run --disk base.img,overlay=mine.img --user root -- mount /dev/vda /mnt
  voidbox run --workspace . -- make test
  voidbox run --workspace project:rw
  voidbox run --volume ./data:/data:ro --volume cache:/home/sandbox/.cache -- make test
  voidbox run --kernel vmlinuz --initramfs guest.cpio
  voidbox run --kernel vmlinuz --initramfs guest.cpio --memory 4G --cpus 2
  voidbox run --kernel vmlinux --initramfs guest.cpio --cmdline 'loglevel=7'
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("run", "Run a command or a shell in a fresh VM.", _EPILOG)
    parser.usage = "voidbox run [OPTION …] [-- COMMAND [ARGUMENT …]]"
    parser.explain = _explain
    parser.add_argument(
        "--kernel", metavar="PATH", help="bzImage or ELF vmlinux; the last built by default"
    )
    root_options.add_options(parser)
    add_command_options(parser)
    parser.add_argument(
        "--secret-env",
        action="append",
        default=[],
        metavar="NAME",
        help="a variable that is taken from here, and whose value is shown nowhere: in no record, "
        "list or log; NAME=VALUE shows it to whoever lists processes",
    )
    parser.add_argument(
        "-i", "--interactive", action="store_true", help="it reads this input; done anyway"
    )
    parser.add_argument(
        "-t",
        "--tty",
        action="store_true",
        default=None,
        help="give it a terminal; done anyway where input and output are one",
    )
    parser.add_argument("-T", "--no-tty", action="store_false", dest="tty", help="never do that")
    parser.add_argument("--console-log", metavar="PATH", help="write the guest's console there")
    parser.add_argument(
        "--console",
        action="store_true",
        help="show the guest's console here, run no COMMAND; a --kernel then gets no default image",
    )
    parser.add_argument(
        "--cmdline", default="", metavar="STR", help="words added to the kernel command line"
    )
    parser.add_argument(
        "--no-default-cmdline",
        action="store_true",
        help="give the kernel the words of --cmdline alone",
    )
    parser.add_argument("--memory", default="512M", metavar="SIZE", help="512M (default), 4G, …")
    parser.add_argument("--cpus", default="1", metavar="N", help="1 (default) to 8")
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar=DISK_FORM,
        help="a raw image or a block device for the guest, as /dev/vda and on. ro: only read; "
        "overlay: what is written goes to FILE, so that VMs share PATH; serial: its name in the "
        "guest. A comma in a path is written twice. Repeatable",
    )
    parser.add_argument("--timeout", metavar="TIME", help="end the VM after 90, 90s, 10m, 2h")
    parser.add_argument(
        "--self-extract",
        action="store_true",
        help="let a bzImage unpack itself: slower, but with KASLR",
    )
    parser.add_argument(
        "--vsock",
        metavar="PATH|vhost|none",
        help="a socket device: host programs connect to the Unix socket PATH and send CONNECT "
        "<port>; the guest's connections to port P go to PATH_P. Or vhost: the host kernel's. Or "
        "none: a COMMAND then goes over a slow serial line",
    )
    parser.add_argument("--cid", default="3", metavar="N", help="the guest's vsock address, 3")
    parser.add_argument(
        "--workspace",
        metavar="DIR[:copy|ro|rw][,cache=auto|always|none]",
        help="a folder of this host at /workspace: copied in, and its changes back at the end "
        "(copy, the default), or shared live, read-only or not; cache=always is faster where "
        "nobody else changes it meanwhile",
    )
    parser.add_argument(
        "--volume",
        action="append",
        default=[],
        metavar="SOURCE:TARGET[:ro]",
        help="a folder of this host, named with a / in it, live at TARGET; or a named volume, see "
        "voidbox volume. Repeatable",
    )
    kept_options.add_options(parser)
    network.add_options(parser)
    parser.add_argument(
        "--stats", metavar="PATH", help="write exit counts and boot time there, as JSON"
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status.

    Raises:
        VoidboxError: bad input or an unusable host.
    """
    argv, command = split(argv)
    options = make_options().parse_args(argv)
    if kept_options.is_wanted(options):
        from voidbox.cli import kept_run

        return kept_run.main(options, command, _cmdline(options))
    if options.json:
        raise ConfigError("--json shows a sandbox that stays: it goes with --detach")
    if options.idle_timeout is not None:
        raise ConfigError("--idle-timeout is for a sandbox that stays: it goes with --detach")
    is_console = options.console or (options.initramfs is not None and not command)
    if command and options.console:
        raise ConfigError("--console shows the guest's console and runs no COMMAND: leave one out")
    return _run_here(options, command, is_console)


def _run_here(options: argparse.Namespace, command: tuple[str, ...], is_console: bool) -> int:
    """Run a VM that ends with this process."""
    timeout_s = parse_optional_duration(options.timeout, "--timeout")
    workspace = kept_options.parse_workspace(options.workspace)
    if (workspace.path is not None or options.volume) and is_console:
        raise ConfigError(
            "--workspace and --volume need the agent: give a COMMAND, and no --console"
        )
    kernel = options.kernel or defaults.find_kernel()
    choice = None
    # A kernel of one's own on the console is given no image unasked.
    if not options.console or options.kernel is None or options.initramfs or options.image:
        choice = root_options.choose(options)
    config = MachineConfig(
        kernel=kernel,
        initramfs=choice.image if choice is not None else None,
        cmdline=_cmdline(options),
        memory_bytes=parse_memory(options.memory),
        cpus=parse_number(options.cpus, "--cpus"),
        self_extract=options.self_extract,
        vsock=_vsock(options.vsock, options.cid),
        net=network.parse(options, is_console),
        disks=tuple(map(parse_disk, options.disk)),
        shares=_shares(workspace),
    )
    root = choice.root if choice is not None else None
    raise_file_limit()

    def on_end(machine: WorkerMachine) -> None:
        if options.stats is not None:
            _write_statistics(machine, options.stats)

    with contextlib.ExitStack() as stack:
        if options.verbose:
            stack.enter_context(show_log())
        else:  # what this host lacks is told by voidbox doctor
            logging.getLogger(JAIL_LOG).setLevel(logging.ERROR)
        if root is not None:
            upper = None
            if root.disk_bytes:
                from voidbox.sandbox.root import TemporaryUpper

                upper = stack.enter_context(TemporaryUpper(root.disk_bytes)).path
            config = root.applied_to(config, upper)
        if options.volume:
            config = _with_volumes(config, options.volume, workspace)
        if is_console or choice is None:
            from voidbox.cli import console_run

            return console_run.run(config, timeout_s, on_end, options.jail)
        from voidbox.cli import guest_run
        from voidbox.cli.attach import Command

        return guest_run.run(
            config,
            Command(
                choice.command(command, options.entrypoint),
                {
                    **choice.envs(parse_environment(options.env)),
                    **kept_options.parse_secrets(options.secret_env),
                },
                choice.workdir(options.workdir),
                choice.user(options.user),
                options.tty,
            ),
            timeout_s=timeout_s,
            is_verbose=options.verbose,
            console_log=options.console_log,
            has_vsock=options.vsock != "none",
            on_end=on_end,
            workspace=workspace.path if workspace.mode == "copy" else None,
            jail=options.jail,
        )


def _shares(workspace: kept_options.Workspace) -> tuple[ShareConfig, ...]:
    if workspace.path is None or workspace.mode == "copy":
        return ()
    from voidbox.sandbox.mounts import WORKSPACE_PATH, WORKSPACE_TAG

    is_read_only = workspace.mode == "ro"
    return (
        ShareConfig(workspace.path, WORKSPACE_TAG, is_read_only, WORKSPACE_PATH, workspace.cache),
    )


def _with_volumes(
    config: MachineConfig, texts: list[str], workspace: kept_options.Workspace
) -> MachineConfig:
    from voidbox.sandbox.mounts import WORKSPACE_PATH
    from voidbox.sandbox.volumes.attach import attach
    from voidbox.sandbox.volumes.spec import parse_volumes

    is_copied = workspace.path is not None and workspace.mode == "copy"
    return attach(config, parse_volumes(texts, copied_to=WORKSPACE_PATH if is_copied else None))


def _explain(words: Sequence[str], unknown: Sequence[str]) -> str | None:
    """Say what is wrong with words that other programs' `run` would take."""
    # As Python takes it to pieces, -v/a:/b is no option's value, or one that nobody expects.
    glued = [word for word in words if word.startswith("-v") and ":" in word]
    if glued and (not unknown or unknown[0].lstrip("-") == glued[0][2:]):
        return _explain_v(glued[0][2:])
    if not unknown:
        return None
    word = unknown[0].partition("=")[0]
    before = dict(zip(words[1:], words, strict=False)).get(unknown[0], "")
    if word in _ELSEWHERE:
        return f"there is no option {word}: {_ELSEWHERE[word]}"
    if before == "-v" and ":" in unknown[0]:
        return _explain_v(unknown[0])
    if not word.startswith(("-", "/", ".")) and ":" in word:
        return f"an image is given by --image {word}, and a COMMAND comes behind --"
    if not word.startswith("-"):
        return f"a COMMAND comes behind --: voidbox run [OPTION …] -- {' '.join(unknown)}"
    return None


def _explain_v(volume: str) -> str:
    return (
        f"-v is --verbose here: --volume {volume} shares a folder, or gives a named volume; "
        "--workspace DIR gives the folder at /workspace"
    )


def split(argv: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return our own arguments, and the COMMAND behind the first "--"."""
    if "--" not in argv:
        return argv, ()
    at = argv.index("--")
    if at == len(argv) - 1:
        raise ConfigError("-- is followed by no COMMAND")
    return argv[:at], tuple(argv[at + 1 :])


def _vsock(where: str | None, cid: str) -> VsockConfig | None:
    address = parse_number(cid, "--cid")
    if where is None or where == "none":
        return None
    if not where:
        raise ConfigError("--vsock: give a path for the socket, vhost or none")
    return VsockConfig(address, is_vhost=True) if where == "vhost" else VsockConfig(address, where)


def _cmdline(options: argparse.Namespace) -> str:
    words: str = options.cmdline
    return words if options.no_default_cmdline else f"{DEFAULT_CMDLINE} {words}".rstrip()


def _write_statistics(machine: WorkerMachine, path: str) -> None:
    import json

    found = machine.metrics()
    ports: dict[str, int] = found.get("port_exits", {})
    document: dict[str, object] = {
        "exits": found.get("exits"),
        "port_exits": {f"{int(port):#x}": n for port, n in sorted(ports.items())},
        "boot_ns": found.get("boot_ns"),
        "boot_timer_monotonic_ns": found.get("boot_timer_ns"),
    }
    if found.get("disks"):
        document["disks"] = found["disks"]
    if found.get("network") is not None:
        document["network"] = found["network"]
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
    except OSError as error:
        raise ConfigError(f"cannot write --stats {path}: {error.strerror}") from error
