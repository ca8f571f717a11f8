"""Takes sandboxes of a node on the same machine, over one connection to its gateway.

What was taken ends with the connection, and so with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

from voidbox.errors import PoolFull, SandboxLost
from voidbox.ray import tls
from voidbox.ray.answers import checked
from voidbox.ray.carrier import NodeAddress
from voidbox.ray.taken import TakenSandbox
from voidbox.ray.ticket import Ticket
from voidbox.sandbox.control import encode, make_error
from voidbox.sandbox.endpoint import StoredEndpoint
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sdk.place import StoredPlace

_LINE_BYTES_MAX = 8 << 20  # a ticket with a large environment
_RETRY_S_MAX = 5.0


class _NearEndpoint(StoredEndpoint):
    """A guest whose end is told as one of another machine is."""

    def explain_end(self) -> str:
        """See Endpoint. What is not this program's doing is a SandboxLost."""
        story = super().explain_end()
        if story and story != self.own_end:
            raise SandboxLost(story, "guest")
        return story


class _NearPlace(StoredPlace):
    def __init__(self, store: Store, record: SandboxRecord) -> None:
        super().__init__(store, record)
        self.endpoint = _NearEndpoint(store, record)


class NearSandbox(TakenSandbox):
    """A sandbox of this machine that a node gave to another process: it is used directly."""

    def __init__(self, store: Store, ticket: Ticket, holding: Holding) -> None:
        """Use Holding.acquire()."""
        record = ticket.record
        self._store = store
        self._attach(_NearPlace(store, record), record, False, store.path(record.id))
        self._holding = holding

    async def end(self) -> bool:
        """See PooledSandbox."""
        self._say_ended()
        try:
            return await self._holding.release(self.sandbox_id)
        finally:
            await self._disconnect()


class Holding:
    """See above. Thread: one event loop's."""

    def __init__(self, address: NodeAddress) -> None:
        self._address = address
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._stores: dict[str, Store] = {}
        self._lost = ""

    async def open(self) -> None:
        """Connect.

        Raises:
            SandboxLost: the node is gone.
        """
        at = self._address
        context = tls.client_context(at.certificate) if at.certificate else None
        try:
            reader, writer = await asyncio.open_connection(
                at.host, at.port, ssl=context, limit=_LINE_BYTES_MAX
            )
            writer.write(encode({"op": "hold", "token": at.token}))
            line = await reader.readline()
        except OSError as error:
            raise SandboxLost(f"the pool of node {at.node} has ended", "pool") from error
        answer = json.loads(line or b"{}")
        if answer.get("ok") is not True:
            writer.close()
            raise make_error(answer)
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader))

    async def acquire(self) -> Any:
        """Return a sandbox, once there is one.

        Raises:
            SandboxLost: the node is gone.
            NodeDrains: it gives none any more.
            VoidboxError: what its start failed with.
        """
        while True:
            try:
                answer = await self._ask({"op": "acquire", "timeout": None})
                return await self.use(answer["ticket"])
            except PoolFull as error:
                await asyncio.sleep(min(_RETRY_S_MAX, error.retry_after))

    async def use(self, values: dict[str, Any]) -> Any:
        """Return the sandbox of a ticket, which comes as JSON has it."""
        ticket = Ticket.from_json(values)
        folder = ticket.state_folder
        if folder not in self._stores:
            self._stores[folder] = await asyncio.to_thread(Store, folder)
        return NearSandbox(self._stores[folder], ticket, self)

    async def release(self, id: str) -> bool:
        """Give one back; False if it had ended."""
        try:
            return (await self._ask({"op": "release", "id": id})).get("was_alive") is True
        except SandboxLost:
            return False

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._lost or self._writer is None:
            raise SandboxLost(self._lost or "it is not connected", "pool")
        n = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[n] = future
        self._writer.write(encode({"n": n, **request}))
        try:
            answer = await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(self._give_back)
            raise
        return checked(answer)

    def _give_back(self, future: asyncio.Future[dict[str, Any]]) -> None:
        """End what came for somebody who no longer waits."""
        if not future.cancelled() and future.exception() is None and "ticket" in future.result():
            id = future.result()["ticket"]["record"]["id"]
            asyncio.get_running_loop().create_task(self.release(id))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                answer = json.loads(line)
                future = self._answers.pop(answer["n"], None)
                if future is not None and not future.done():
                    future.set_result(answer)
        except (OSError, ValueError):
            pass
        finally:
            self._lost = f"the pool of node {self._address.node} has ended"
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(SandboxLost(self._lost, "pool"))
                    future.exception()
            self._answers.clear()
