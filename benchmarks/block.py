"""The block device beside QEMU's: same kernel, image, file and fio jobs, in one run.

Contenders: voidbox over the raw file, voidbox over an overlay with the file as its base, and QEMU
microvm's virtio-blk with aio=threads and cache=writeback. fio in the guest reads and writes the
disk itself, past the guest's page cache: in sequence, a MiB at a time, four at once; and in places
chosen at random, 4 KiB at a time, 32 at once. Rounds are interleaved; quote medians and ratios.

    python benchmarks/block.py [--rounds N] [--megabytes N] [--seconds N] [--folder DIR]
                               [--contenders NAMES] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import contenders

from voidbox.agent.client import AgentClient
from voidbox.errors import AgentError
from voidbox.vmm.config import DiskConfig, MachineConfig

MEMORY_MIB = 1536  # fio and all that Debian's needs is 200 MiB of initramfs
JOB_S = 120.0  # more than a job may take
QEMU, VOIDBOX, OVERLAY = "qemu", "voidbox", "overlay"
# Rows: name, unit, target against QEMU, fio's options.
ROWS = (
    ("sequential write", "MB/s", 0.6, ("write", "1M", 4)),
    ("sequential read", "MB/s", 0.6, ("read", "1M", 4)),
    ("random 4 KiB read", "/s", 0.3, ("randread", "4k", 32)),
    ("random 4 KiB write", "/s", 0.3, ("randwrite", "4k", 32)),
)


def fio_command(mode: str, block: str, depth: int, seconds: float) -> list[str]:
    """One job, for so many seconds."""
    options = {
        "name": mode, "rw": mode, "bs": block, "iodepth": depth, "runtime": seconds,
        "filename": "/dev/vda", "ioengine": "libaio", "direct": 1, "thread": 1, "time_based": 1,
        "ramp_time": 0.5, "norandommap": 1, "randrepeat": 0, "output-format": "json",
    }  # fmt: skip
    return ["fio", *(f"--{name}={value}" for name, value in options.items())]


def measure(seconds: float, client: AgentClient) -> list[float] | None:
    """Run all jobs in the guest; None if one does not come to its end."""
    found = []
    for _, unit, _, (mode, block, depth) in ROWS:
        command = fio_command(mode, block, depth, seconds)
        process = client.exec(command, user="root", timeout_s=JOB_S)
        try:
            output = b"".join(data for _, data in process.output())
            end = process.wait()
        except AgentError as error:
            print(error, file=sys.stderr)
            return None
        if end.timed_out:
            return None
        if end.status:
            raise SystemExit(f"fio failed:\n{output.decode()}")
        # fio may say something before its report.
        (job,) = json.loads(output[output.index(b"{") :])["jobs"]
        result = job["write" if "write" in mode else "read"]
        found.append(result["iops"] if unit == "/s" else result["bw_bytes"] / 1e6)
    return found


def run_voidbox(config: MachineConfig, disk: DiskConfig, seconds: float) -> list[float] | None:
    """Measure voidbox."""
    config = config._replace(disks=(disk,))
    found: list[float] | None = contenders.run_voidbox(config, partial(measure, seconds))
    return found


def run_qemu(config: MachineConfig, path: Path, seconds: float) -> list[float] | None:
    """Measure QEMU."""
    drive = f"id=d0,file={path},format=raw,if=none,aio=threads,cache=writeback"
    options = ["-drive", drive, "-device", "virtio-blk-device,drive=d0"]
    with (
        tempfile.TemporaryDirectory() as folder,
        contenders.run_qemu(config, Path(folder), options) as (client, _),
    ):
        return measure(seconds, client)


def make_image(folder: Path, megabytes: int) -> Path:
    """An image all of whose blocks are there: holes would be faster, and no disk's."""
    path = folder / "disk.img"
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(block)
    return path


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--folder", type=Path, help="where the file is, /tmp")
    parser.add_argument("--contenders", default=",".join((QEMU, VOIDBOX, OVERLAY)))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    config = contenders.find_config("fio", memory_mib=MEMORY_MIB)
    samples: dict[str, list[list[float]]] = {}
    wanted = options.contenders.split(",")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = make_image(Path(folder), options.megabytes)
        overlay = Path(folder) / "overlay"
        disk = DiskConfig(str(path))
        for _ in range(options.rounds):
            for name in wanted:
                if name == QEMU:
                    sample = run_qemu(config, path, options.seconds)
                elif name == VOIDBOX:
                    sample = run_voidbox(config, disk, options.seconds)
                else:
                    on_base = disk._replace(overlay=str(overlay))
                    sample = run_voidbox(config, on_base, options.seconds)
                    overlay.unlink()
                if sample is None:
                    print(name, "did not finish", file=sys.stderr, flush=True)
                    continue
                samples.setdefault(name, []).append(sample)
                print(name, *(f"{value:.0f}" for value in sample), file=sys.stderr, flush=True)
    report(samples, options.output)
    return 0


def report(samples: dict[str, list[list[float]]], output: Path | None) -> None:
    """Print medians, and the ratios to QEMU's."""
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in samples.items()
    }
    print(f"{'':22}" + "".join(f"{name:>14}" for name in medians) + "   ratios to QEMU's")
    for index, (name, unit, target, _) in enumerate(ROWS):
        cells = "".join(f"{values[index]:10.0f}{unit:>4}" for values in medians.values())
        verdicts = []
        for other in (VOIDBOX, OVERLAY):
            if other in medians and QEMU in medians:
                ratio = medians[other][index] / medians[QEMU][index]
                verdict = f" ≥{target:g} " + ("met" if ratio >= target else "MISSED")
                verdicts.append(f"{other} {ratio:.2f}{verdict if other == VOIDBOX else ''}")
        print(f"{name:22}{cells}   {'; '.join(verdicts)}")
    if output is not None:
        document: dict[str, Any] = {"rows": [row[0] for row in ROWS], "samples": samples}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
