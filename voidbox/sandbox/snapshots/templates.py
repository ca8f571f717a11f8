"""Templates: what create() restores instead of booting. STATE/templates/KEY.

The first sandbox of a kind boots, and leaves one right after its agent's first answer, before any
command: nothing of a user is in it. The key says all that such a machine depends on, so a
template never gets old: when anything changes, nobody finds it any more, and it goes.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from hashlib import blake2b

from voidbox.errors import ConfigError, HostError, VoidboxError
from voidbox.sandbox.snapshots import record as records
from voidbox.sandbox.snapshots import rests_on
from voidbox.sandbox.state import names
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.storage import durable
from voidbox.version import __version__
from voidbox.vmm.config import MachineConfig

FOLDER = "templates"
COUNT_MAX, DISK_BYTES_MAX = 8, 4 << 30
_VARIABLE, _OFF = "VOIDBOX_TEMPLATES", "off"
# Those that could not be restored, within so long, after which no more of a kind are made.
_FAILURES_MAX, _FAILURES_S = 3, 24 * 3600.0
_KEY_BYTES = names.ID_DIGITS // 2


def key_of(record: SandboxRecord, config: MachineConfig) -> str | None:
    """Return what a sandbox's template is found by; None for one that boots and leaves none."""
    try:
        return _key(record, config) if suits(record) else None
    except ConfigError:  # whoever makes the machine says which file is gone
        return None


def suits(record: SandboxRecord) -> bool:
    """Whether a sandbox may be restored from a template, or leave one.

    Not with what is a part of the machine and the user's own: disks, a folder shared live. Nor
    with an init of the image's, which has only begun when the agent answers.
    """
    return (
        not (record.is_cold or record.snapshot or record.disks or record.volumes)
        and record.vsock == "unix"
        and (record.workspace is None or record.workspace_mode == "copy")
        and not (record.root or {}).get("init")
        and os.environ.get(_VARIABLE) != _OFF
    )


def _key(record: SandboxRecord, config: MachineConfig) -> str:
    """Say all that the machine depends on. Raises ConfigError for a file that is gone."""
    files = [config.kernel, *([config.initramfs] if config.initramfs is not None else [])]
    values = {
        "voidbox": __version__,
        "host": os.uname().release,
        "files": {path: rests_on.identify(path) for path in files},
        "disks": rests_on.files_of(config),
        "root": record.root,
        "memory": config.memory_bytes,
        "cpus": config.cpus,
        "balloon": config.balloon,
        "cmdline": config.kernel_cmdline,
        "network": None if config.net is None else str(config.net.network),
    }
    text = json.dumps(values, sort_keys=True).encode()
    return blake2b(text, digest_size=_KEY_BYTES).hexdigest()


class Templates:
    """The templates in a state folder. Thread: any; processes: any number."""

    def __init__(self, state_folder: str) -> None:
        self.path = f"{state_folder}/{FOLDER}"
        self._aside = f"{state_folder}/set-aside"

    def find(self, key: str) -> str | None:
        """Return a template's folder, which counts as used now; None if there is none."""
        folder = self.place(key)
        try:
            os.utime(folder)
        except OSError:
            return None
        return folder

    def place(self, key: str) -> str:
        """Return where a template is, or would be."""
        return f"{self.path}/{key}"

    def prepare(self) -> None:
        """Make room for one more: drop what nobody will find, and what was used longest ago.

        Raises:
            HostError: the place cannot be made.
        """
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
        except OSError as error:
            raise durable.failure("make", self.path, error) from error
        from voidbox.snapshot import folder as folders  # few sandboxes leave a template

        folders.sweep(self.path)
        self.prune(COUNT_MAX - 1, DISK_BYTES_MAX)

    def prune(
        self, count: int = 0, disk_bytes: int = 0, *, dry_run: bool = False
    ) -> tuple[list[str], int]:
        """Delete templates until so many, and so many bytes, are left; return which, and the bytes.

        Those whose files have changed go first.

        Args:
            dry_run: only say which.
        """
        from voidbox.snapshot import folder as folders

        kept: list[int] = []
        gone: list[str] = []
        freed = 0
        for folder in self._by_use():
            with suppress(HostError, OSError):  # somebody else deletes it, say
                size = folders.sizes(folder).disk_bytes
                has_room = len(kept) < count and sum(kept) + size <= disk_bytes
                if has_room and self._is_current(folder):
                    kept.append(size)
                    continue
                freed += size
                if not dry_run:
                    self._remove(folder)
                gone.append(os.path.basename(folder))
        return gone, freed

    def set_aside(self, folder: str) -> None:
        """Have nobody find a template that could not be restored; its description is kept."""
        with suppress(VoidboxError, OSError):
            aside = durable.set_aside(folder, self._aside, _aside_name(os.path.basename(folder)))
            for file in os.listdir(aside):
                if file not in (records.FILE, "machine.bin"):
                    os.unlink(f"{aside}/{file}")

    def check_worth(self, key: str) -> None:
        """Refuse to make yet another one of a kind that this host cannot restore.

        Each costs its writing, and then a start that fails before another that boots.

        Raises:
            ConfigError: so many have been set aside of late.
        """
        failures = 0
        with suppress(OSError), os.scandir(self._aside) as entries:
            for entry in entries:
                is_of_kind = _aside_name(key) in entry.name
                failures += is_of_kind and time.time() - entry.stat().st_mtime < _FAILURES_S
        if failures >= _FAILURES_MAX:
            raise ConfigError(
                f"{failures} of this kind could not be restored within a day; what is in "
                f"{self._aside} says when"
            )

    def _remove(self, folder: str) -> None:
        gone = f"{folder}.part"  # which is swept
        with suppress(FileNotFoundError):
            os.rename(folder, gone)
            durable.remove_tree(gone)

    def _is_current(self, folder: str) -> bool:
        try:
            found = records.load(folder)
            rests_on.check(found.files, "it")
        except (VoidboxError, OSError):
            return False
        return found.voidbox == __version__

    def _by_use(self) -> list[str]:
        """Return all folders, the one used last first."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                if names.is_id(entry.name):
                    found.append((entry.stat().st_mtime_ns, entry.path))
        return [path for _, path in sorted(found, reverse=True)]


def _aside_name(key: str) -> str:
    """Return what one that was set aside is called, after the time."""
    return f"template-{key}"
