"""From create()'s arguments to a sandbox's record."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from voidbox import defaults
from voidbox.errors import ConfigError
from voidbox.fuse.cache import CACHE_DEFAULT, find_cache
from voidbox.sandbox.image_choice import Choice, choose
from voidbox.sandbox.jail_level import check_level
from voidbox.sandbox.session import WORKDIR, check_seconds, check_words
from voidbox.sandbox.state.names import check_name
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.volumes.spec import parse_volume, parse_volumes
from voidbox.vmm.config import MEMORY_BYTES_DEFAULT, parse_disk, parse_memory

WORKSPACE_MODES = ("copy", "ro", "rw")
_MEMORY_MIB_MAX = 16 << 20  # a larger number is one of bytes, by mistake


def make_record(
    *,
    kernel: str | os.PathLike[str] | None,
    image: str | os.PathLike[str] | Choice | None,
    memory: int | str | None,
    cpus: int,
    envs: Mapping[str, str] | None,
    metadata: Mapping[str, str] | None,
    timeout: float | None,
    name: str | None,
    workdir: str | None,
    user: str | None,
    net: dict[str, object] | None,
    vsock: str,
    team: str | None,
    cmdline: str | None,
    is_owned: bool,
    disks: Sequence[str] | None = None,
    disk_size: int | str | None = None,
    init: str | None = None,
    state_folder: str | None = None,
    workspace: str | os.PathLike[str] | None = None,
    workspace_mode: str = "copy",
    workspace_cache: str = CACHE_DEFAULT,
    jail: str | None = None,
    limits: Mapping[str, float | None] | None = None,
    volumes: Sequence[str] | None = None,
    idle_timeout: float | None = None,
    secret_envs: Mapping[str, str] | None = None,
) -> SandboxRecord:
    """Return what Store.create() takes.

    Args:
        image: see choose(); or what that returned.
        secret_envs: of which the record has the names alone.
        state_folder: where the images are; None for the user's own.
        jail: one of jail.levels.LEVELS; None for $VOIDBOX_JAIL, or the default.

    Raises:
        ConfigError: an argument makes no sense, or there is no kernel or image.
    """
    for given in (name, team):
        if given is not None:
            check_name(given)
    own_envs = check_variables("envs", envs)
    secrets = check_variables("secret_envs", secret_envs, is_secret=True)
    kernel_path = os.path.abspath(kernel) if kernel is not None else defaults.find_kernel()
    if not isinstance(image, Choice):
        image = choose(
            image,
            kernel_path,
            disk_bytes=disk_bytes(disk_size),
            init=init,
            state_folder=state_folder,
        )
    if type(cpus) is not int or cpus < 1:
        raise ConfigError(f"cpus={cpus!r}: give a whole number, 1 or more")
    check_workdir(workdir)
    if workspace_mode not in WORKSPACE_MODES:
        raise ConfigError(f"workspace_mode={workspace_mode!r}: choose copy, ro or rw")
    check_cache(workspace_cache, workspace_mode)
    if idle_timeout is not None and vsock == "none":
        raise ConfigError(
            "idle_timeout needs vsock: on a serial line nobody can be asked who uses the sandbox"
        )
    copied_to = WORKDIR if workspace is not None and workspace_mode == "copy" else None
    return SandboxRecord(
        name=name or "",
        kernel=kernel_path,
        image=image.image,
        memory_bytes=memory_bytes(memory),
        cpus=cpus,
        envs={name: value for name, value in image.envs(own_envs).items() if name not in secrets},
        secret_envs=tuple(secrets),
        metadata=check_texts("metadata", metadata),
        workdir=image.workdir(workdir),
        user=image.user(user),
        timeout_s=None if timeout is None else check_seconds("timeout", timeout),
        idle_timeout_s=(
            None if idle_timeout is None else check_seconds("idle_timeout", idle_timeout)
        ),
        net=net,
        vsock=vsock,
        team=team,
        is_owned=is_owned,
        cmdline=cmdline or "",
        disks=tuple(str(parse_disk(text).at(os.getcwd())) for text in check_list("disks", disks)),
        root=image.root.to_json() if image.root is not None else None,
        workspace=None if workspace is None else check_workspace(workspace),
        workspace_mode=workspace_mode,
        workspace_cache=workspace_cache,
        jail=check_level(jail),
        limits=check_limits(limits or {}, net),
        volumes=tuple(map(str, parse_volumes(volumes or (), copied_to=copied_to))),
    )


def check_workdir(workdir: str | None) -> None:
    """Refuse what commands cannot run in.

    Raises:
        ConfigError: it is no absolute path.
    """
    if workdir is not None and not (isinstance(workdir, str) and workdir.startswith("/")):
        raise ConfigError(f"workdir={workdir!r}: give an absolute path in the guest")


def check_cache(cache: str, mode: str) -> None:
    """Check how a workspace may be cached.

    Raises:
        ConfigError: it cannot be: there is no such way, or it is a copy.
    """
    find_cache(cache)
    if cache != CACHE_DEFAULT and mode == "copy":
        raise ConfigError(f"cache={cache} is for a workspace that is shared live: ro or rw")


def check_limits(
    given: Mapping[str, object], net: Mapping[str, object] | None
) -> dict[str, object]:
    """Return a record's limits.

    Args:
        given: see resource_limits; None for no limit.
    Raises:
        ConfigError: there is no such limit, or it makes no sense.
    """
    from voidbox.sandbox.process import resource_limits

    found = resource_limits.check(given)
    if found.get(resource_limits.NET_BYTES_S) is not None and net is None:
        raise ConfigError("a limit for the network of a sandbox that has none")
    return {key: value for key, value in found.items() if value is not None}


def shared_folders(record: SandboxRecord) -> dict[str, str | None]:
    """Return the host's folders that a guest has live, by where; None for a volume of its own."""
    found: dict[str, str | None] = {}
    if record.workspace is not None and record.workspace_mode in ("ro", "rw"):
        found[WORKDIR] = record.workspace
    for spec in map(parse_volume, record.volumes):
        found[spec.target] = None if spec.is_named else spec.source
    return found


def check_workspace(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a folder that can be a workspace.

    Raises:
        ConfigError: it is none.
    """
    found = os.path.abspath(os.fspath(path))
    if not os.path.isdir(found):
        raise ConfigError(f"the workspace {found} is no folder")
    if os.path.samefile(found, "/"):
        raise ConfigError("the workspace / is all of this host: name a folder of its own")
    return found


def memory_bytes(memory: int | str | None) -> int:
    """Return an amount of memory: MiB as a number, or text such as "512M" or "4G".

    Raises:
        ConfigError: it is neither.
    """
    if memory is None:
        return MEMORY_BYTES_DEFAULT
    if isinstance(memory, str):
        return parse_memory(memory)
    if type(memory) is not int or not 0 < memory <= _MEMORY_MIB_MAX:
        raise ConfigError(f'memory={memory!r}: give MiB as a number, or text such as "512M"')
    return memory << 20


def disk_bytes(size: int | str | None) -> int | None:
    """Return the size of a disk: MiB as a number, or text such as "512M" or "4G"; None stays.

    Raises:
        ConfigError: it is neither.
    """
    if size is None:
        return None
    if isinstance(size, str):
        return parse_memory(size)
    if type(size) is not int or not 0 <= size <= _MEMORY_MIB_MAX:
        raise ConfigError(f'disk_size={size!r}: give MiB as a number, or text such as "8G"')
    return size << 20


def make_net(
    *,
    allow: Sequence[str] | None,
    deny: Sequence[str] | None,
    allow_host_ports: Sequence[int] | None,
    publish: Sequence[str] | None,
    rate_bytes_s: int | None,
    pcap: str | None,
    block_network: bool,
    outbound_domain_allowlist: Sequence[str] | None,
) -> dict[str, object] | None:
    """Return a record's network; None for no network.

    Raises:
        ConfigError: the arguments contradict each other, or one is no list.
    """
    rules: dict[str, object] = {
        "allow": [*check_list("allow", allow), *check_list("", outbound_domain_allowlist)],
        "deny": list(check_list("deny", deny)),
        "allow_host_ports": _ports(allow_host_ports),
        "publish": list(check_list("publish", publish)),
    }
    if block_network:
        if any(rules.values()) or rate_bytes_s is not None or pcap is not None:
            raise ConfigError("block_network=True leaves nothing for other rules to do")
        return None
    if outbound_domain_allowlist is not None and not rules["allow"]:
        rules["deny"] = ["*"]  # a list of what may be reached that is empty: nothing
    if rate_bytes_s is not None:
        rules["rate_bytes_s"] = rate_bytes_s
    if pcap is not None:
        rules["pcap"] = os.path.abspath(pcap)
    return rules


def check_list(name: str, values: Sequence[str] | None) -> list[str]:
    """Return a list of texts. Raises ConfigError for anything else."""
    name = name or "outbound_domain_allowlist"
    if isinstance(values, str) or not all(isinstance(value, str) for value in values or ()):
        raise ConfigError(f"{name}={values!r}: give a list of strings")
    return list(values or ())


def _ports(values: Sequence[int] | None) -> list[int]:
    if isinstance(values, str | int) or not all(type(value) is int for value in values or ()):
        raise ConfigError(f"allow_host_ports={values!r}: give a list of numbers")
    return list(values or ())


def check_variables(
    what: str, values: Mapping[str, str] | None, *, is_secret: bool = False
) -> dict[str, str]:
    """Return variables that programs can have. No message shows a secret one's value."""
    if is_secret and not (isinstance(values, Mapping | None) and _are_texts(values or {})):
        raise ConfigError(f"{what}: give a dictionary of text for text")
    found = check_texts(what, values)
    words = []
    for name, value in found.items():
        shown = "*" * len(os.fsencode(value)) if is_secret else value
        if not name or "=" in name or "\0" in name + value:
            raise ConfigError(f"{what}: {name!r}: {shown!r}: no program can have such a variable")
        words.append(f"{name}={shown}")
    check_words(what, words)
    return found


def _are_texts(values: Mapping[str, str]) -> bool:
    return all(isinstance(text, str) for pair in values.items() for text in pair)


def check_texts(name: str, values: Mapping[str, str] | None) -> dict[str, str]:
    """Return a dictionary of texts. Raises ConfigError for anything else."""
    if not isinstance(values, Mapping | None):
        raise ConfigError(f"{name}={values!r}: give a dictionary")
    found = dict(values or {})
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ConfigError(f"{name}: {key!r}: {value!r}: give text for text")
    return found
