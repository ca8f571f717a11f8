"""One request on the client's side, with an agent that does what a test wants."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from voidbox.agent import protocol
from voidbox.agent.call import Call
from voidbox.agent.client import AgentClient
from voidbox.agent.core import Event
from voidbox.agent.link import Link
from voidbox.agent.packing import pack
from voidbox.agent.protocol import Decoder, Frame
from voidbox.errors import AgentError, SandboxTimeout

PONG = pack({"version": "1", "capabilities": [], "authenticated": True})


class FakeAgent:
    """Answers the first PING, and requests by `answer`; keeps all frames that came."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.changed = threading.Condition()
        self.answer: Callable[[Frame], bytes] = lambda frame: b""
        self._sock, self._peer = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.link = Link(self._sock)
        self.link.handshake(bytes(32), 20)
        self.client = AgentClient(self.link, request_timeout_s=0.2)

    def _run(self) -> None:
        decoder = Decoder(protocol.FROM_HOST)
        has_ponged = False
        with self._peer, contextlib.suppress(OSError):
            while data := self._peer.recv(65536):
                for frame in decoder.feed(data):
                    answer = self.answer(frame)  # a test may set another once it has the PONG
                    if frame.type == protocol.PING and not has_ponged:
                        has_ponged = True
                        self._peer.sendall(protocol.encode(protocol.PONG, 0, PONG))
                    self._peer.sendall(answer)
                    with self.changed:
                        self.frames.append(frame)
                        self.changed.notify_all()

    def await_frame(self, type: int, request: int) -> None:
        with self.changed:
            assert self.changed.wait_for(
                lambda: any((f.type, f.request) == (type, request) for f in self.frames), 20
            ), f"no frame of type {type} for request {request}"

    def close(self) -> None:
        self.link.close()
        self._thread.join()


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    agent = FakeAgent()
    yield agent
    agent.close()


def started(frame: Frame) -> bytes:
    """Answers an EXEC and nothing else."""
    if frame.type != protocol.EXEC:
        return b""
    return protocol.encode(protocol.EVENT, frame.request, pack({"pid": 7}))


def test_events_without_end_do_not_hold_up_the_deadline() -> None:
    rounds = 0

    def post(action: Callable[[], None]) -> None:
        nonlocal rounds
        rounds += 1
        assert rounds < 1_000_000, "the deadline is never looked at"
        call.deliver(Event(1, {}, 1))

    call = Call("metrics", post)
    call.deliver(Event(1, {}, 1))
    with pytest.raises(SandboxTimeout, match=r"metrics: .* 0\.05 s"):
        call.result(0.05)


def test_a_ping_is_answered_by_its_own_pong(agent: FakeAgent) -> None:
    with pytest.raises(SandboxTimeout):
        agent.client.ping(bytes(32))


def test_a_ping_after_the_end_says_so(agent: FakeAgent) -> None:
    agent.link.close()
    with pytest.raises(AgentError, match="closed"):
        agent.client.ping(bytes(32))


def test_asking_for_the_process_id_takes_no_output_from_the_reader(agent: FakeAgent) -> None:
    """Two threads: one waits for output, the other asks, as a signal's thread does."""
    agent.answer = lambda frame: b""
    process = agent.client.exec(["x"])
    out: list[bytes] = []
    reader = threading.Thread(target=lambda: out.extend(data for _, data in process.output()))
    pids: list[int] = []
    asker = threading.Thread(target=lambda: pids.append(process.pid))
    reader.start()
    asker.start()
    agent.await_frame(protocol.EXEC, 1)
    agent._peer.sendall(protocol.encode(protocol.EVENT, 1, pack({"pid": 7})))
    asker.join(5)
    has_answered = not asker.is_alive()
    for word in (b"one", b"two"):
        agent._peer.sendall(protocol.encode(protocol.DATA, 1, word, protocol.STDOUT))
    end: dict[str, Any] = {"exit_code": 0, "signal": None}
    agent._peer.sendall(protocol.encode(protocol.RESULT, 1, pack(end)))
    reader.join()
    asker.join()
    assert has_answered and pids == [7]
    assert out == [b"one", b"two"]


def test_whoever_gives_a_request_up_has_it_ended(agent: FakeAgent) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    def answer(frame: Frame) -> bytes:
        if frame.type == protocol.FILE_READ:
            return protocol.encode(protocol.DATA, frame.request, b"data")
        if frame.type == protocol.FILE_LIST:
            entries = pack({"entries": [{"name": "one"}, {"name": "two"}]})
            return protocol.encode(protocol.EVENT, frame.request, entries)
        return b""

    agent.answer = answer
    output: Any = Full()
    with pytest.raises(OSError, match="No space"):
        agent.client.read_file("/f", output)
    agent.await_frame(protocol.CANCEL, 1)
    for _ in agent.client.list_files("/"):
        break
    agent.await_frame(protocol.CANCEL, 2)
    with pytest.raises(SandboxTimeout):
        list(agent.client.list_files("/"))
    agent.await_frame(protocol.CANCEL, 3)
    with pytest.raises(SandboxTimeout):
        agent.client.watch("/")
    agent.await_frame(protocol.CANCEL, 4)


def test_a_removal_that_the_agent_forgets_is_given_up(agent: FakeAgent) -> None:
    with pytest.raises(SandboxTimeout, match="remove /x"):
        agent.client.remove("/x", recursive=True)
    agent.await_frame(protocol.CANCEL, 1)


def test_a_long_removal_is_not_given_up(agent: FakeAgent) -> None:
    def answer(frame: Frame) -> bytes:
        return b"" if frame.type != protocol.FILE_REMOVE else progress(frame.request)

    def progress(request: int) -> bytes:
        for count in range(4):
            timers.append(threading.Timer(0.1 * (count + 1), send, [request, count]))
            timers[-1].start()
        return b""

    def send(request: int, count: int) -> None:
        type = protocol.EVENT if count < 3 else protocol.RESULT
        agent._peer.sendall(protocol.encode(type, request, pack({})))

    timers: list[threading.Timer] = []
    agent.answer = answer
    agent.client.remove("/x", recursive=True)
    for timer in timers:
        timer.join()


@pytest.mark.parametrize("text", ["a\nvoidbox: b", "\x1b[2J", "x" * 100_000])
def test_the_guests_words_are_one_short_line(agent: FakeAgent, text: str) -> None:
    end = {"exit_code": 127, "signal": None, "error": text}
    agent.answer = lambda frame: (
        protocol.encode(protocol.ERROR, frame.request, pack({"code": "EIO", "message": text}))
        if frame.type == protocol.METRICS
        else protocol.encode(protocol.RESULT, frame.request, pack(end))
        if frame.type == protocol.EXEC
        else b""
    )
    with pytest.raises(AgentError) as caught:
        agent.client.metrics()
    for words in (str(caught.value), agent.client.exec(["x"]).wait().error):
        assert words and words.isprintable() and len(words) < 10_000
