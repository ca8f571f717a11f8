"""Analyse data in a sandbox, and bring the plot back as a PNG.

    python examples/plot.py [--image NAME] [--output FILE]

The default image has no matplotlib: there, a few lines of plain Python draw. For the real thing:

    voidbox image build plot --debian bookworm --package python3-matplotlib
    python examples/plot.py --image plot
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

from voidbox import Sandbox

PNG = b"\x89PNG\r\n\x1a\n"

# What a model may have written: it runs in the sandbox.
ANALYSIS = """\
import csv, statistics, struct, zlib

with open("data.csv") as file:
    rows = [(float(row["hour"]), float(row["load"])) for row in csv.DictReader(file)]
hours, loads = zip(*rows)
mean = statistics.fmean(loads)
print(f"{len(rows)} rows, mean {mean:.2f}, highest {max(loads):.2f}")


def draw(width=640, height=320):
    lowest, highest = min(loads), max(loads)
    def row_of(load):
        return round((highest - load) / (highest - lowest) * (height - 1))
    pixels = [bytearray(b"\\xff" * 3 * width) for _ in range(height)]
    pixels[row_of(mean)][:] = b"\\x80\\x80\\x80" * width
    before = row_of(loads[0])
    for x in range(width):
        row = row_of(loads[x * len(loads) // width])
        for y in range(min(before, row), max(before, row) + 1):
            pixels[y][3 * x : 3 * x + 3] = b"\\x1f\\x77\\xb4"
        before = row
    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    image = zlib.compress(b"".join(b"\\0" + bytes(row) for row in pixels))
    with open("plot.png", "wb") as file:
        file.write(b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header))
        file.write(chunk(b"IDAT", image) + chunk(b"IEND", b""))


try:
    import matplotlib
except ImportError:
    draw()
    print("drawn by hand: there is no matplotlib here")
else:
    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.plot(hours, loads)
    pyplot.axhline(mean, color="grey")
    pyplot.xlabel("hour")
    pyplot.ylabel("load")
    pyplot.savefig("plot.png")
    print(f"drawn by matplotlib {matplotlib.__version__}")
"""


def main(image: str | None = None, output: str = "plot.png") -> None:
    """Send the data, run the analysis, fetch the plot."""
    with Sandbox.create(image=image, memory="1G", block_network=True, timeout=600) as sandbox:
        sandbox.files.write("data.csv", make_data())
        sandbox.files.write("analysis.py", ANALYSIS)
        result = sandbox.exec("python3", "analysis.py", timeout=300, check=True)
        print(result.stdout, end="")
        sandbox.files.download("plot.png", output)
    with open(output, "rb") as file:  # the guest's word for it is not enough
        if file.read(len(PNG)) != PNG:
            raise SystemExit(f"{output} is no PNG")
    print(f"{output}: {Path(output).stat().st_size} bytes")


def make_data() -> str:
    """Return a day of measurements."""
    noise = random.Random(1)
    lines = ["hour,load"]
    for minute in range(0, 24 * 60, 5):
        load = 50 - 40 * math.cos(minute / 720 * math.pi) + noise.gauss(0, 3)
        lines.append(f"{minute / 60:.3f},{load:.2f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Data analysis in a sandbox.")
    parser.add_argument("--image", help="one with python3, and matplotlib for a better plot")
    parser.add_argument("--output", default="plot.png")
    main(**vars(parser.parse_args()))
