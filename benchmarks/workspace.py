"""A folder of the host in a guest: shared live by 9P, beside the guest's own disk, in one VM.

The same commands in /workspace, where the host's folder is, and in a folder of the guest's root,
which is memory there. Rounds are interleaved; medians are quoted, and their ratios. The image
needs git: `scripts/build_guest_image.sh --with git`.

    python benchmarks/workspace.py [--rounds N] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from voidbox import Sandbox  # noqa: E402

SHARED, OWN = "/workspace", "/home/sandbox"
FILES = 60
COMMANDS = {
    "write 64 MiB": "dd if=/dev/zero of=big bs=1M count=64 conv=fsync",
    "read 64 MiB": "dd if=big of=/dev/null bs=1M",
    f"make {FILES} files": f"mkdir r; cd r; for i in $(seq {FILES}); do echo $i >f$i; done",
    "git init, git add": "cd r; git init -q --template=; git add .",
    "git status": "cd r; git status -s >/dev/null",
}


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds, by command and folder."""
    build = ["scripts/build_guest_image.sh", "--with", "git"]
    image = subprocess.run(build, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    seconds: dict[str, dict[str, list[float]]] = {name: {SHARED: [], OWN: []} for name in COMMANDS}
    with (
        tempfile.TemporaryDirectory(prefix="vb-") as host,
        Sandbox.create(
            image=Path(image.strip()), workspace=host, workspace_mode="rw", memory="768M"
        ) as sandbox,
    ):
        for _ in range(rounds):
            for folder in (SHARED, OWN):
                for name, text in COMMANDS.items():
                    began = time.monotonic()
                    sandbox.commands.run(text, cwd=folder, check=True, timeout=600)
                    seconds[name][folder].append(time.monotonic() - began)
                sandbox.commands.run("rm -rf big r", cwd=folder, check=True, timeout=600)
    return seconds


def main() -> None:
    """Measure, print a table, and write it as JSON if that is asked for."""
    parser = argparse.ArgumentParser(description="A shared folder beside the guest's own.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output")
    options = parser.parse_args()
    seconds = measure(options.rounds)
    print("| command | shared | the guest's own | ratio |\n|---|---|---|---|")
    for name, found in seconds.items():
        shared, own = (statistics.median(found[folder]) for folder in (SHARED, OWN))
        print(f"| {name} | {shared:.2f} s | {own:.2f} s | {own / shared:.2f} |")
    if options.output:
        Path(options.output).write_text(json.dumps(seconds, indent=1))


if __name__ == "__main__":
    main()
