"""What goes wrong, in the shapes that E2B's SDKs understand.

Control plane and gateway: {"code": the HTTP status, "message": …}, both always there. envd's
Connect calls: {"code": a word, "message": …}, with the HTTP status of that word or, in a stream,
in its last frame.
"""

from __future__ import annotations

from collections.abc import Mapping

from voidbox.agent.call import RequestFailed
from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout, VoidboxError

# Connect's words for errors and their HTTP statuses; connectrpc.com, "Error codes".
STATUS_OF = {
    "invalid_argument": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "already_exists": 409,
    "failed_precondition": 400,
    "resource_exhausted": 429,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "deadline_exceeded": 504,
}

_CODE_OF_ERRNO = {
    "ENOENT": "not_found",
    "ESRCH": "not_found",
    "EEXIST": "already_exists",
    "EACCES": "permission_denied",
    "EPERM": "permission_denied",
    "ENOSPC": "resource_exhausted",
    "EDQUOT": "resource_exhausted",
    "ENOTDIR": "invalid_argument",
    "EISDIR": "invalid_argument",
    "EINVAL": "invalid_argument",
    "ENAMETOOLONG": "invalid_argument",
    "ELOOP": "invalid_argument",
    "EOPNOTSUPP": "unimplemented",
    "ENOTSUP": "unimplemented",
    "bad-request": "invalid_argument",
}


class ApiError(Exception):
    """An answer that is no success.

    Attributes:
        status: of HTTP.
        headers: more of the answer's.
    """

    def __init__(
        self, status: int, message: str, headers: Mapping[str, str] | None = None, **more: object
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.more = more

    def body(self) -> dict[str, object]:
        """Return the answer's JSON."""
        return {"code": self.status, "message": str(self), **self.more}


class ConnectError(Exception):
    """An error of a Connect call.

    Attributes:
        code: one of STATUS_OF.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def body(self) -> dict[str, object]:
        """Return its JSON."""
        return {"code": self.code, "message": str(self)}


class SandboxGone(Exception):
    """The sandbox has ended, or stands still: nobody answers for it."""


def bad(message: str) -> ApiError:
    """Return the error of a request that makes no sense."""
    return ApiError(400, message)


def not_supported(what: str) -> ApiError:
    """Return the error for what this server does not do. Never pretend."""
    return ApiError(501, f"voidbox serve does not support {what}", error_code="not_supported")


def not_found(sandbox_id: str) -> ApiError:
    """Return the error for a sandbox that is not there, or is another key's."""
    return ApiError(404, f"Sandbox {sandbox_id!r} not found")


def gone(sandbox_id: str) -> ApiError:
    """Return what the data plane answers for a sandbox that does not run."""
    return ApiError(502, "The sandbox was not found", sandboxId=sandbox_id)


def port_closed(sandbox_id: str, port: int) -> ApiError:
    """Return what the data plane answers where nothing listens."""
    message = "The sandbox is running but port is not open"
    return ApiError(502, message, sandboxId=sandbox_id, port=port)


def as_api_error(error: VoidboxError) -> ApiError:
    """Return what a caller of the control plane is told."""
    if isinstance(error, ConfigError):
        return ApiError(400, str(error))
    if isinstance(error, SandboxTimeout):
        return ApiError(504, str(error))
    if isinstance(error, HostError):
        return ApiError(500, str(error), {"Should-Retry": "false"})
    if isinstance(error, AgentError):
        return ApiError(500, str(error), error_code="agent")
    return ApiError(500, str(error))


def as_connect_error(error: VoidboxError) -> ConnectError:
    """Return what a caller of envd is told."""
    if isinstance(error, RequestFailed):
        return ConnectError(_CODE_OF_ERRNO.get(error.code, "internal"), str(error))
    if isinstance(error, SandboxTimeout):
        return ConnectError("deadline_exceeded", str(error))
    if isinstance(error, ConfigError):
        return ConnectError("invalid_argument", str(error))
    return ConnectError("unavailable" if isinstance(error, AgentError) else "internal", str(error))
