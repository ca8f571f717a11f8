"""A stand-in for a coding agent's program: runs in the guest, with the options of the real one.

    python3 stand_in_agent.py -p PROMPT --session-id ID | --resume ID [whatever else]

Its first turn looks at the files, runs the tests and makes a plan; a resumed one does what the plan
of that session says, and nothing without one. It answers as `claude --output-format json` does.
Standard library only: the guest's Python is all that it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

WRONG, RIGHT = "result -= number", "result += number"


def main() -> int:
    """Do one turn; returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", dest="prompt", required=True)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--session-id")
    which.add_argument("--resume")
    options, _ = parser.parse_known_args()
    session = options.session_id or options.resume
    memory = Path(os.environ.get("HOME", "/tmp"), f".stand-in-agent-{session}.json")
    try:
        text = apply(memory) if options.resume else plan(memory, options.prompt)
    except (OSError, ValueError, LookupError) as error:
        return answer(session, f"{type(error).__name__}: {error}", is_error=True)
    return answer(session, text)


def plan(memory: Path, prompt: str) -> str:
    """Find what fails, and remember how to mend it."""
    if run_tests().returncode == 0:
        raise ValueError("the tests pass: there is nothing to do")
    for path in sorted(Path().glob("*.py")):
        if WRONG in path.read_text():
            plan = {"prompt": prompt, "file": path.name, "old": WRONG, "new": RIGHT}
            memory.write_text(json.dumps(plan))
            return f"PLAN: in {path.name}, `{RIGHT}` for `{WRONG}`; then run the tests."
    raise LookupError("the tests fail, and I do not see why")


def apply(memory: Path) -> str:
    """Do what was planned in the turn before."""
    plan: dict[str, Any] = json.loads(memory.read_text())
    path = Path(plan["file"])
    path.write_text(path.read_text().replace(plan["old"], plan["new"]))
    if run_tests().returncode != 0:
        raise ValueError("the tests still fail")
    return f"DONE: {path.name} is mended, and the tests pass."


def run_tests() -> subprocess.CompletedProcess[bytes]:
    """Run the tests as an agent's shell tool would.

    Without compiled files: an edit within a second that changes no size would not be noticed.
    """
    return subprocess.run([sys.executable, "-B", "test_calc.py"], capture_output=True, timeout=60)


def answer(session: str, text: str, is_error: bool = False) -> int:
    """Print what the turn came to."""
    print(
        json.dumps({"type": "result", "is_error": is_error, "result": text, "session_id": session})
    )
    return int(is_error)


if __name__ == "__main__":
    sys.exit(main())
