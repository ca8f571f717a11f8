"""Making images, beside other programs that do the same: the same layers, the same disk, one run.

A layer each of some of this machine's folders is pushed to Debian's docker-registry on loopback.
Rows: `voidbox image pull` from there, and its parts (download; unpack and apply; write), beside
`tar -xzf` of the same layers into a folder and `mkfs.erofs` of that; then `voidbox image import` of
that folder beside `mkfs.erofs`. Rounds are interleaved; medians are quoted, and their ratios.

    python benchmarks/images.py [--rounds N] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.unit.images.oci import CONFIG_TYPE, LAYER_TYPE, OciImage, descriptor
from tests.unit.images.real_registry import real_registry
from voidbox.images.importing import import_
from voidbox.images.manifest import OCI_MANIFEST
from voidbox.images.progress import ImageProgress
from voidbox.images.pulling import pull
from voidbox.images.store import ImageStore

FOLDERS = ("usr/share/doc", "usr/bin", "usr/lib/python3", "usr/include")
PARTS = {"download": "download", "layer": "download", "unpack": "unpack", "write": "write"}


def digest_of(content: bytes) -> str:
    """Return a content's digest."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def make_image() -> OciImage:
    """Return an image with a layer of each folder."""
    plain = [
        subprocess.run(["tar", "-c", "-C", "/", name], capture_output=True, check=True).stdout
        for name in FOLDERS
    ]
    packed = [gzip.compress(content, 6, mtime=0) for content in plain]
    config = {
        "os": "linux", "architecture": "amd64", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(content) for content in plain]},
    }  # fmt: skip
    content = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(CONFIG_TYPE, content),
        "layers": [descriptor(LAYER_TYPE, layer) for layer in packed],
    }  # fmt: skip
    blobs = {digest_of(blob): blob for blob in (content, *packed)}
    layers = tuple(digest_of(layer) for layer in packed)
    return OciImage(json.dumps(manifest).encode(), content, blobs, layers)


def measure_pull(name: str, folder: Path, seconds: dict[str, list[float]]) -> None:
    """Pull into an empty store; add what it took, and its parts."""
    began = last = time.monotonic()
    part = "download"
    parts: dict[str, float] = defaultdict(float)

    def report(step: ImageProgress) -> None:
        nonlocal last, part
        now = time.monotonic()
        parts[part] += now - last
        last, part = now, PARTS.get(step.stage, part)

    pull(name, store=ImageStore(str(folder)), progress=report)
    seconds["voidbox image pull"].append(time.monotonic() - began)
    parts[part] += time.monotonic() - last
    for name, span_s in parts.items():
        seconds[f"  {name}"].append(span_s)


def timed(do: Callable[[], object]) -> float:
    """Return how long something takes, in seconds."""
    began = time.monotonic()
    do()
    return time.monotonic() - began


def run_round(name: str, image: OciImage, folder: Path, seconds: dict[str, list[float]]) -> None:
    """Do everything once, with empty folders."""
    layers = []
    for number, digest in enumerate(image.layers):
        layers.append(folder / f"{number}.tar.gz")
        layers[-1].write_bytes(image.blobs[digest])
    os.sync()
    measure_pull(name, folder / "pulled", seconds)
    root = folder / "root"
    root.mkdir()

    def extract() -> None:
        for layer in layers:
            subprocess.run(["tar", "-xzf", layer, "-C", root], check=True)

    seconds["tar -xzf"].append(timed(extract))
    command = ["mkfs.erofs", "--quiet", str(folder / "peer.erofs"), str(root)]
    seconds["mkfs.erofs"].append(timed(lambda: subprocess.run(command, check=True)))
    store = ImageStore(str(folder / "imported"))
    seconds["voidbox image import"].append(timed(lambda: import_("x", root, store=store)))


def run_rounds(image: OciImage, folder: Path, rounds: int, seconds: dict[str, list[float]]) -> None:
    """Do everything some times, over one registry."""
    with real_registry(folder / "registry") as registry:
        registry.push(image)
        for number in range(rounds):
            here = folder / f"round{number}"
            here.mkdir()
            run_round(f"{registry.address}/team/app", image, here, seconds)
            shutil.rmtree(here)


def main() -> None:
    """Run, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    image = make_image()
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="voidbox-bench-") as text:
        run_rounds(image, Path(text), options.rounds, seconds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    packed_bytes = sum(len(image.blobs[digest]) for digest in image.layers)
    peers = medians["tar -xzf"] + medians["mkfs.erofs"]
    ratios = {
        "unpack and write : tar and mkfs.erofs": (medians["  unpack"] + medians["  write"]) / peers,
        "import : mkfs.erofs": medians["voidbox image import"] / medians["mkfs.erofs"],
    }
    print(f"{len(image.layers)} layers, {packed_bytes >> 20} MiB packed, {options.rounds} rounds")
    for name, span_s in medians.items():
        print(f"{name:24} {span_s:6.2f} s")
    for name, ratio in ratios.items():
        print(f"{name:40} {ratio:.2f} (time; less is better)")
    if options.output is not None:
        result = {"packed_bytes": packed_bytes, "seconds": dict(seconds), "ratios": ratios}
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
