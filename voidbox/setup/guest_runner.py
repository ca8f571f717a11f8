"""A guest that runs the scripts of packages: see debian_root."""

from __future__ import annotations

from voidbox.errors import CommandFailed
from voidbox.images.pack import write_tree
from voidbox.images.tree import Tree
from voidbox.sdk.sync import Sandbox
from voidbox.setup.debian_root import OnLine
from voidbox.setup.errors import SetupError

_MEMORY, _DISK = "1G", "8G"  # some file systems have no larger files
_COMMAND = ["/.voidbox/usr/bin/busybox", "sh", "/outer.sh"]
_SAYS_BYTES_MAX = 64 << 10


def run_in_guest(tree: Tree, work: str, output: str, on_line: OnLine) -> None:
    """Run /outer.sh of a root in a guest without a network. See debian_root.Runner.

    Raises:
        SetupError: it fails; with its last words.
        VoidboxError: there is no kernel, or no KVM that can do it.
    """
    root = f"{work}/root.erofs"
    write_tree(tree, root)
    lines = _Lines(on_line)
    disk = f"{output.replace(',', ',,')},serial=voidbox-output"
    with Sandbox.create(
        image=root, memory=_MEMORY, disk_size=_DISK, disks=[disk], user="root",
        block_network=True, workdir="/",
    ) as guest:  # fmt: skip
        try:
            guest.commands.run(_COMMAND, on_stdout=lines.add, on_stderr=lines.add, check=True)
        except CommandFailed as error:
            lines.end()
            raise SetupError(f"the installation of packages failed: {lines.reason}") from error
        guest.commands.run(["/.voidbox/usr/bin/busybox", "sync"], check=True)
    lines.end()


class _Lines:
    """Puts lines together. Thread: the one that waits for the command.

    Attributes:
        reason: the first line that says what is wrong, else the last of all.
    """

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._rest = ""
        self._is_found = False
        self.reason = "no reason given"

    def add(self, text: str) -> None:
        """Take what was said."""
        *lines, rest = (self._rest + text).split("\n")
        self._rest = rest[-_SAYS_BYTES_MAX:]
        for line in lines:
            self._say(line.rstrip("\r"))

    def end(self) -> None:
        """Take a last line that has no end."""
        rest, self._rest = self._rest, ""
        if rest:
            self._say(rest)

    def _say(self, line: str) -> None:
        is_reason = line.startswith(("E: ", "dpkg: error"))
        if line.strip() and not self._is_found:
            self.reason = line.removeprefix("E: ")
            self._is_found = is_reason
        self._on_line(line)
