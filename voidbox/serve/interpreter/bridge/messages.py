"""From Jupyter's messages to a client's: maps that become lines of JSON."""

from __future__ import annotations

import time
from typing import Any

Message = dict[str, Any]

CHART, TABLE = "application/vnd.voidbox.chart+json", "application/vnd.voidbox.table+json"
_FIELDS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "text/latex": "latex",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "application/json": "json",
    "application/javascript": "javascript",
    TABLE: "data",
    CHART: "chart",
}


def translate(kind: str, content: Message) -> Message | None:
    """Return what a client is told of a message on a kernel's IOPub channel; None for nothing."""
    if kind == "stream":
        return {"type": content["name"], "text": content["text"], "timestamp": time.time_ns()}
    if kind == "execute_input":
        return {"type": "number_of_executions", "execution_count": content["execution_count"]}
    if kind == "error":
        return error(content["ename"], content["evalue"], "\n".join(content["traceback"]))
    if kind in ("display_data", "execute_result"):
        return result(content["data"], kind == "execute_result")
    return None


def error(name: str, value: str, traceback: str = "") -> Message:
    """Return how an execution failed."""
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


def result(bundle: Message, is_main: bool) -> Message:
    """Return a value in all its forms."""
    found: Message = {"type": "result", "is_main_result": is_main}
    extra = {}
    for kind, value in bundle.items():
        if kind in _FIELDS:
            found[_FIELDS[kind]] = _joined(value)
        else:
            extra[kind] = _joined(value)
    text = found.get("text")
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        found["text"] = text[1:-1]  # a text's repr
    if extra:
        found["extra"] = extra
    return found


def _joined(value: Any) -> Any:
    is_lines = isinstance(value, list) and all(isinstance(line, str) for line in value)
    return "".join(value) if is_lines else value
