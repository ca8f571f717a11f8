"""Run a script that one does not trust: with input, a time limit, and no network.

python examples/run_script.py
"""

from __future__ import annotations

from voidbox import CommandTimeout, Sandbox

SCRIPT = """\
import collections, json, sys

words = sys.stdin.read().split()
print(json.dumps(collections.Counter(words).most_common(2)))
"""
ENDLESS = "while True: pass"


def main(limit: float = 2) -> None:
    """Run it, and one that does not end."""
    # The sandbox ends with the block; with this program, however that ends; or after five minutes.
    with Sandbox.create(block_network=True, timeout=300) as sandbox:
        sandbox.files.write("count.py", SCRIPT)
        result = sandbox.commands.run("python3 count.py", stdin="to be or not to be", timeout=60)
        print(f"exit code {result.exit_code}: {result.stdout.strip()}")

        try:
            sandbox.exec("python3", "-c", ENDLESS, timeout=limit)
        except CommandTimeout as error:
            print(f"ended by its time limit: exit code {error.result.exit_code}")

        # What goes wrong there is a result here, not an accident.
        result = sandbox.exec("python3", "-c", "import os; os.kill(os.getpid(), 11)")
        print(f"crashed: exit code {result.exit_code}, signal {result.signal}")


if __name__ == "__main__":
    main()
