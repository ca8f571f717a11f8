"""What the checks of all SDKs share, run by their interpreters."""

import importlib.metadata
import json
import os
import sys
import time
import traceback

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def only(*version):
    """Have a check be for this version of the SDK and later ones."""

    def choose(function):
        if version <= tuple(map(int, importlib.metadata.version("e2b").split("."))):
            CHECKS.append(function)
        return function

    return choose


def raises(kind, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def run_all(box):
    """Do all checks with a sandbox, end it, and print {name: "" or what went wrong} as JSON.

    But for those that $WITHOUT names.
    """
    results = {}
    without = os.environ.get("WITHOUT", "").split()
    try:
        for function in [one for one in CHECKS if one.__name__ not in without]:
            began_at = time.monotonic()
            try:
                function(box)
                results[function.__name__] = ""
            except BaseException:
                results[function.__name__] = traceback.format_exc()[-3000:]
            print(function.__name__, round(time.monotonic() - began_at, 1), file=sys.stderr)
    finally:
        box.kill()
    print(json.dumps(results))
