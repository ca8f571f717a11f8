"""What a node answers to a call, with the refusals that it alone has; see sandbox.control."""

from __future__ import annotations

from typing import Any

from voidbox.errors import PoolFull, VoidboxError
from voidbox.sandbox.control import describe_error, make_error

_RETRY_AFTER, _DRAINS = "retry_after", "drains"


class NodeDrains(VoidboxError):
    """The node gives no more sandboxes, for its machine is to end: another one is to be asked."""


def refusal(error: VoidboxError) -> dict[str, Any]:
    """Return the answer of which checked() raises the same error."""
    answer = describe_error(error)
    if isinstance(error, PoolFull):
        return {**answer, _RETRY_AFTER: error.retry_after}
    return {**answer, _DRAINS: True} if isinstance(error, NodeDrains) else answer


def checked(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer that is no refusal.

    Raises:
        VoidboxError: it is one.
    """
    if answer.get("ok") is True:
        return answer
    if _RETRY_AFTER in answer:
        raise PoolFull(str(answer.get("error")), float(answer[_RETRY_AFTER]))
    if _DRAINS in answer:
        raise NodeDrains(str(answer.get("error")))
    raise make_error(answer)
