"""A program with the options of Claude Code that talks to its API: Read, Edit and Bash, sessions.

It keeps what the real one keeps in $HOME: the conversation of each session.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any


def read(file_path: str) -> str:
    return Path(file_path).read_text()


def edit(file_path: str, old_string: str, new_string: str) -> str:
    path = Path(file_path)
    path.write_text(path.read_text().replace(old_string, new_string))
    return "edited"


def bash(command: str, **_: object) -> str:
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    return done.stdout + done.stderr


TOOLS = {"Read": read, "Edit": edit, "Bash": bash}


def ask(messages: list[Any]) -> dict[str, Any]:
    """Return the API's next message, put together from its stream."""
    body = {"model": "m", "stream": True, "messages": messages, "tools": [{"name": "Read"}]}
    request = urllib.request.Request(
        os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages?beta=true",
        json.dumps(body).encode(),
        {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "Content-Type": "application/json"},
    )
    block: dict[str, Any] = {}
    text, done = "", False
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            if event["type"] == "content_block_start":
                block = event["content_block"]
            elif event["type"] == "content_block_delta":
                text += event["delta"].get("text", "") + event["delta"].get("partial_json", "")
            done = done or event["type"] == "message_stop"
    assert done, "the stream was cut"
    if block["type"] == "text":
        return {**block, "text": text}
    return {**block, "input": json.loads(text)}


def main() -> None:
    if "--version" in sys.argv:
        print("0.0 (fake)")
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", dest="prompt")
    parser.add_argument("--session-id")
    parser.add_argument("--resume")
    options, _ = parser.parse_known_args()
    session = options.session_id or options.resume
    memory = Path(os.environ["HOME"], f"session-{session}.json")
    messages = json.loads(memory.read_text()) if options.resume else []
    messages.append({"role": "user", "content": options.prompt})
    while True:
        block = ask(messages)
        messages.append({"role": "assistant", "content": [block]})
        if block["type"] == "text":
            break
        result = TOOLS[block["name"]](**block["input"])
        content = {"type": "tool_result", "tool_use_id": block["id"], "content": result}
        messages.append({"role": "user", "content": [content]})
    memory.write_text(json.dumps(messages))
    print(json.dumps({"is_error": False, "result": block["text"], "session_id": session}))


if __name__ == "__main__":
    main()
