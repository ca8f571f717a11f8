"""Who may go where: the policy, asked for every new flow, and what is said of refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from voidbox.net.policy import Policy
from voidbox.net.wire import dotted

_LOOPBACK = 0x7F00_0001


class Gate:
    """Thread: loop.

    Args:
        log: takes a line when a reason refuses for the first time.

    Attributes:
        refused: how often each reason did.
    """

    def __init__(self, policy: Policy, log: Callable[[str], None]) -> None:
        self.refused: Counter[str] = Counter()
        self._policy = policy
        self._log = log

    def target(self, address: int, port: int, protocol: str, now_ns: int) -> int | None:
        """Return the host's address for the guest's, or None if the policy forbids it.

        They differ for the gateway alone, which leads to the host's loopback.
        """
        verdict = self._policy.check(address, port, now_ns)
        if verdict.allowed:
            return _LOOPBACK if address == self._policy.gateway else address
        if not self.refused[verdict.rule]:
            self._log(f"refused {protocol} to {dotted(address)}:{port}: {verdict.rule}")
        self.refused[verdict.rule] += 1
        return None
