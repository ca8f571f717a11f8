"""Start the agent: as PID 1 of a guest, or on a Unix socket of any machine.

    python -m guest_agent --socket PATH --secret-file PATH

serves on a Unix socket as an ordinary program, to develop and test clients without a guest.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from guest_agent.loop import Loop, describe_fault, log
from guest_agent.server import Agent
from guest_agent.spawn import reset_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guest_agent.identity import Identity

_ANSWER_S = 0.05  # in which the answer to who asks for the guest's end gets out
_SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPWR)


def main(arguments: list[str]) -> int:
    """Run the agent; returns the exit status, unless it is PID 1."""
    reset_signals()
    if os.getpid() == 1:
        _run_guest()
        return 0
    if len(arguments) != 4 or arguments[::2] != ["--socket", "--secret-file"]:
        print(__doc__, file=sys.stderr)
        return 2
    with open(arguments[3], "rb") as file:
        secret = file.read()
    _run_program(arguments[1], secret)
    return 0


def _run_guest() -> None:
    """Bring the guest up, serve, and end the machine, whatever happens.

    This is PID 1, unless the image's own init is to be: then it is its first child.
    """
    from guest_agent import boot
    from guest_agent.cgroups import Groups

    ends: list[bool] = []  # is it a reboot
    loop = Loop()

    def shut_down(is_reboot: bool) -> None:
        ends.append(is_reboot)
        loop.call_later(_ANSWER_S, loop.stop)

    try:
        secret, init_path = boot.prepare()
        if init_path:
            _run_beside_init(init_path, loop, secret)
            return
        # busybox's reboot sends SIGTERM to PID 1, its poweroff and halt SIGUSR2 and SIGUSR1.
        loop.catch(_SHUTDOWN_SIGNALS)
        loop.on_signal = lambda number: shut_down(number in (signal.SIGTERM, signal.SIGINT))
        _serve_guest(Agent(loop, secret, shut_down, _load_identity, Groups()))
        loop.run()
    except BaseException as error:
        log(f"the guest ends: {describe_fault(error)}")
        ends.append(False)
    boot.end(ends[0])


def _run_beside_init(path: str, loop: Loop, secret: bytes) -> None:
    """Be the first child of the image's init; returns when that ends the machine.

    Raises:
        OSError: there is no such init; then this is PID 1 still.
    """
    from guest_agent import boot, init

    def shut_down(is_reboot: bool) -> None:
        try:
            init.end(is_reboot)
        except FileNotFoundError:  # an image that is ended from outside, as s6-overlay's are
            loop.call_later(_ANSWER_S, lambda: boot.end(is_reboot))

    init.hand_over(path)
    loop.catch((signal.SIGTERM,))
    loop.on_signal = lambda number: loop.stop()
    _serve_guest(Agent(loop, secret, shut_down, _load_identity, init.join_cgroup()))
    loop.run()


def _serve_guest(agent: Agent) -> None:
    from guest_agent import boot

    serial_fd = boot.open_serial_line()
    if serial_fd is not None:
        agent.serve_serial(serial_fd)
    try:
        agent.serve_vsock()
    except OSError as error:
        log(f"no vsock ({error.strerror}): serving on the serial line alone")


def _load_identity() -> Identity:
    from guest_agent.identity import Identity  # no boot needs it

    return Identity()


def _run_program(path: str, secret: bytes) -> None:
    loop = Loop()
    loop.catch((signal.SIGTERM, signal.SIGINT))
    loop.on_signal = lambda number: loop.stop()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    Agent(loop, secret, lambda is_reboot: loop.stop()).serve_socket(listener)
    loop.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
