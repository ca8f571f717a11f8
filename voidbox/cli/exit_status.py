"""Exit statuses of the command line. Documented in README.md."""

from __future__ import annotations

OK = 0  # the guest powered off or rebooted; the user quit with Ctrl-A x
NOT_DELIVERED = 1  # a message of `voidbox send`
INCOMPLETE = 1  # `voidbox cp`: something could not be read; `voidbox workspace pull`: copied back
USAGE = 2  # bad arguments, an unusable file, a host that cannot run VMs
PANIC = 120  # the guest's kernel panicked
CRASH = 121  # the guest crashed: a triple fault, an exit that cannot be handled
SOME_FAILED = 123  # `voidbox pool run`: a command failed, as xargs has it
AGENT = 122  # the guest's agent did not answer, or was lost
TIMEOUT = 124  # --timeout ran out
INTERNAL = 125  # voidbox itself failed: a bug
SIGNAL_BASE = 128  # plus the number of the signal that ended voidbox
INTERRUPTED = SIGNAL_BASE + 2
BROKEN_PIPE = SIGNAL_BASE + 13

# By the name of the machine's EndReason.
OF_END = {
    "POWER_OFF": OK,
    "RESET": OK,
    "STOPPED": OK,
    "PANIC": PANIC,
    "CRASH": CRASH,
    "ERROR": INTERNAL,
}


def of_output_error(error: OSError) -> int:
    """Return the status for output that could not be written."""
    return BROKEN_PIPE if isinstance(error, BrokenPipeError) else USAGE
