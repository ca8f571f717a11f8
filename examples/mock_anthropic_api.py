"""A stand-in for the Anthropic API on this machine: it plays a model that plans, then applies.

    python examples/mock_anthropic_api.py [--port N]

It knows nothing: what it answers is a script, chosen by what the conversation holds so far. A first
prompt leads to a look at a file and a plan; a second one to an edit and a run of the tests. The
second turn works only if the request brings the first turn's plan along, as it does where the
client really resumed its session. Enough of the Messages API for Claude Code: streaming (SSE),
tools, count_tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLAN = "PLAN: in calc.py, total() must add, not subtract; then run the tests."
DONE = "DONE: total() adds now, and the tests pass."
_LOST = "I know of no plan: this is not the session that made one."
_FAILED = "The tests still fail."
_BODY_BYTES_MAX = 32 << 20  # the real one's limit

# A step is what the model does next: a tool's name and input, or a text.
Step = tuple[str, dict[str, Any]] | str


def read_step(folder: str) -> Step:
    """Return the look at the file."""
    return "Read", {"file_path": f"{folder}/calc.py"}


def edit_step(folder: str) -> Step:
    """Return the edit of the file."""
    return "Edit", {
        "file_path": f"{folder}/calc.py",
        "old_string": "result -= number",
        "new_string": "result += number",
    }


def test_step(folder: str) -> Step:
    """Return the run of the tests, which writes down its result."""
    command = f"cd {folder} && python3 test_calc.py | tee result.txt"
    return "Bash", {"command": command, "description": "Run the tests"}


class MockApi:
    """Serves on a free port of the loopback, until close(). Thread: any.

    Args:
        context: for TLS; None for none.

    Attributes:
        port: where it listens.
        folder: where the model believes the files to be.
        keys: the x-api-key of each request, for tests.
        requests: the bodies of all requests for a message.
    """

    def __init__(
        self,
        port: int = 0,
        folder: str = "/workspace",
        on_request: Callable[[str], None] = lambda line: None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.folder = folder
        self.keys: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.on_request = on_request
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.api = self
        self._server.context = context
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        """What ANTHROPIC_BASE_URL should be, on this machine."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """End it. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MockApi:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def next_step(request: dict[str, Any], folder: str) -> Step:
    """Return what the model does after this conversation."""
    if not request.get("tools"):
        return "ok"  # a title for the session, say
    turns, results = _progress(request["messages"])
    if turns <= 1:
        return read_step(folder) if results == 0 else PLAN
    if PLAN not in json.dumps(request["messages"]):
        return _LOST
    if results < 3:
        return (read_step, edit_step, test_step)[results](folder)  # Edit wants it read in this turn
    return DONE if "all tests passed" in json.dumps(request["messages"][-1]) else _FAILED


def _progress(messages: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the number of the user's prompts, and of tools' results since the last one."""
    turns = results = 0
    for message in messages:
        if message["role"] != "user":
            continue
        content = message["content"]
        blocks = [{"type": "text"}] if isinstance(content, str) else content
        found = sum(block["type"] == "tool_result" for block in blocks)
        if found:
            results += found
        else:
            turns, results = turns + 1, 0
    return turns, results


def events(step: Step, model: str, id: str) -> Iterator[dict[str, Any]]:
    """Yield a message as the events of a stream, in the API's order."""
    yield {"type": "message_start", "message": message(step, model, id, is_begun=True)}
    if isinstance(step, str):
        block: dict[str, Any] = {"type": "text", "text": ""}
        pieces = [{"type": "text_delta", "text": word} for word in step.split(" ")]
        for piece in pieces[1:]:
            piece["text"] = " " + piece["text"]
    else:
        block = {"type": "tool_use", "id": f"toolu_{id}", "name": step[0], "input": {}}
        pieces = [{"type": "input_json_delta", "partial_json": json.dumps(step[1])}]
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    for piece in pieces:
        yield {"type": "content_block_delta", "index": 0, "delta": piece}
    yield {"type": "content_block_stop", "index": 0}
    reason = "end_turn" if isinstance(step, str) else "tool_use"
    delta = {"stop_reason": reason, "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": len(pieces)}}
    yield {"type": "message_stop"}


def message(step: Step, model: str, id: str, is_begun: bool = False) -> dict[str, Any]:
    """Return a message whole, or as it is when its stream begins."""
    if isinstance(step, str):
        content: dict[str, Any] = {"type": "text", "text": step}
    else:
        content = {"type": "tool_use", "id": f"toolu_{id}", "name": step[0], "input": step[1]}
    reason = "end_turn" if isinstance(step, str) else "tool_use"
    return {
        "id": f"msg_{id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [] if is_begun else [content],
        "stop_reason": None if is_begun else reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a client that keeps its connection does not keep us
    api: MockApi
    context: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection: by TLS, if that is wanted."""
        if self.context is None:
            super().finish_request(request, client_address)
            return
        with (
            contextlib.suppress(OSError),  # guests break their connections as they like
            self.context.wrap_socket(request, server_side=True) as wrapped,
        ):
            super().finish_request(wrapped, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= _BODY_BYTES_MAX:
            return self._answer(413, {"type": "error"})
        request = json.loads(self.rfile.read(length))
        api = self.server.api
        api.keys.append(self.headers.get("x-api-key") or "")
        path = self.path.partition("?")[0]
        if path == "/v1/messages/count_tokens":
            return self._answer(200, {"input_tokens": length // 4})
        if path != "/v1/messages":
            return self._answer(404, {"type": "error", "error": {"type": "not_found_error"}})
        api.requests.append(request)
        step = next_step(request, api.folder)
        api.on_request(step if isinstance(step, str) else f"{step[0]} {json.dumps(step[1])}")
        id = f"{len(api.requests):06}"
        if not request.get("stream"):
            return self._answer(200, message(step, request["model"], id))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")  # the end of the stream is the connection's
        self.end_headers()
        self.close_connection = True
        for event in events(step, request["model"], id):
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        return None

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing on standard error."""


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="a free one by default")
    with MockApi(parser.parse_args().port, on_request=print) as api:
        print(f"ANTHROPIC_BASE_URL={api.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
