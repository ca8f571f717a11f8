"""A stream of bytes to a port of a guest, through its agent."""

from __future__ import annotations

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncCall
from voidbox.agent.call import RequestFailed
from voidbox.agent.core import Data
from voidbox.errors import AgentError, SandboxTimeout, VoidboxError
from voidbox.serve.errors import ApiError, SandboxGone, gone, port_closed
from voidbox.serve.served import Served

_CONNECT_S = 15.0
_WRITE_S = 300.0


class GuestStream:
    """One connection. As a context manager it closes it."""

    def __init__(self, served: Served, call: AsyncCall) -> None:
        self._served = served
        self._call = call

    @classmethod
    async def open(cls, served: Served, port: int) -> GuestStream:
        """Connect to a TCP port of a guest.

        Raises:
            ApiError: nobody listens; or the sandbox is gone.
        """
        agent = served.session.agent
        try:
            link = await agent.link(_CONNECT_S)
            if protocol.CAN_DIAL not in link.capabilities:
                raise ApiError(501, "the image's agent is older than this server: build it again")
            call = await agent.call(protocol.DIAL, {"port": port}, f"port {port}", _CONNECT_S)
            try:
                await call.next(_CONNECT_S)
            except BaseException:
                call.cancel()
                raise
        except RequestFailed as error:
            raise port_closed(served.id, port) from error
        except VoidboxError as error:
            if not served.is_running:
                raise gone(served.id) from error
            raise ApiError(504, str(error)) from error
        return cls(served, call)

    async def read(self) -> bytes:
        """Return what comes next; nothing at the end.

        Raises:
            SandboxGone, ConnectionError.
        """
        try:
            pieces = [event.data for event in await self._call.batch() if isinstance(event, Data)]
        except RequestFailed as error:
            raise ConnectionError(str(error)) from error
        except AgentError as error:
            raise SandboxGone from error
        return b"".join(pieces)

    async def write(self, data: bytes) -> None:
        """Send bytes, at the pace of who reads them."""
        view = memoryview(data)
        try:
            for start in range(0, len(view), protocol.CHUNK_BYTES):
                await self._call.write(view[start : start + protocol.CHUNK_BYTES], _WRITE_S)
        except SandboxTimeout as error:
            raise ConnectionError(str(error)) from error

    def close(self) -> None:
        """End it. Idempotent."""
        if not self._call.is_over:
            self._call.cancel()

    def __enter__(self) -> GuestStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
