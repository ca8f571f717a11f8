"""What all verbs' argument parsers share."""

from __future__ import annotations

import argparse

_WIDTH = 100


def make_parser(verb: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `voidbox VERB`: texts as they are written, no abbreviated options."""
    return argparse.ArgumentParser(
        prog=f"voidbox {verb}",
        description=description,
        epilog=epilog,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Of a fixed width: asking for the terminal's imports shutil and all compressors with it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH)
