"""How a machine ended."""

from __future__ import annotations

from enum import Enum

from voidbox.named_tuple import NamedTuple

_PANIC_MARK = "Kernel panic - not syncing"


class EndReason(Enum):
    """Why the vCPUs stopped. The value is the text shown to people."""

    POWER_OFF = "the guest powered off"
    RESET = "the guest reset"
    PANIC = "the guest's kernel panicked"
    CRASH = "the guest crashed"
    STOPPED = "the host stopped the machine"
    ERROR = "voidbox failed"


class Outcome(NamedTuple):
    """The end of a machine.

    Attributes:
        detail: one line more about it, such as the exit reason; may be empty.
        registers: the vCPU's registers at the end, where they say something.
        console_tail: the last of the guest's console output.
        error: what voidbox itself raised, for EndReason.ERROR.
    """

    reason: EndReason
    detail: str = ""
    registers: str = ""
    console_tail: str = ""
    error: BaseException | None = None

    def headline(self) -> str:
        """Return the end and its cause, in one line."""
        return f"{self.reason.value}: {self.detail}" if self.detail else self.reason.value

    def describe(self) -> str:
        """Return the whole story, one or more lines."""
        lines = [self.headline()]
        if self.registers:
            lines += ["registers:", self.registers]
        if self.console_tail and self.reason not in (EndReason.POWER_OFF, EndReason.RESET):
            lines += ["the console's last lines:", self.console_tail]
        return "\n".join(lines)

    def explained_by(self, console_text: str) -> Outcome:
        """Call a reset or a crash that the console announced as a panic by that name.

        Kernels without a pvpanic driver can only say it there. A guest that prints the words and
        resets is believed: it fools nobody but its own user.
        """
        if self.reason in (EndReason.RESET, EndReason.CRASH, EndReason.PANIC):
            for line in console_text.splitlines():
                _, mark, text = line.partition(_PANIC_MARK)
                if mark:
                    return self._replace(reason=EndReason.PANIC, detail=text.strip(": "))
        return self
