"""Work that must not notice being suspended: each part checks itself, and says what was wrong.

    python3 guest_workload.py FOLDER

compile     modules made up, compiled, written, read back: the same bytes each time
database    SQLite in WAL mode: one process moves money about, another counts it
server      a TCP server on port 8000 that doubles what it is told
timers      sleeps that are never too short, by a clock that never falls

FOLDER/NAME.count says how far each has come, FOLDER/wrong what went wrong; FOLDER/stop ends all.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import random
import socketserver
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable

ACCOUNTS, MONEY = 50, 1000


class Work:
    """One part. Each is a process of its own.

    Args:
        folder: an absolute path.
    """

    def __init__(self, folder: str, name: str, step: Callable[[], None]) -> None:
        self._folder = folder
        self._name = name
        self._step = step

    def run(self) -> None:
        """Do it, again and again, until it is to stop or something was wrong."""
        count = 0
        try:
            while not os.path.exists(f"{self._folder}/stop"):
                self._step()
                count += 1
                with open(f"{self._folder}/{self._name}.new", "w") as file:
                    file.write(str(count))
                os.rename(file.name, f"{self._folder}/{self._name}.count")
        except BaseException:
            with open(f"{self._folder}/wrong", "a") as file:
                file.write(f"{self._name}: {traceback.format_exc()}\n")


def compiling(folder: str) -> Callable[[], None]:
    source = "".join(
        f"def f{n}(x, y={n}):\n    return [x * i + y for i in range({n}) if i % 3]\n"
        for n in range(60)
    )
    expected = hashlib.sha256(marshal.dumps(compile(source, "made_up.py", "exec"))).digest()

    def step() -> None:
        code = marshal.dumps(compile(source, "made_up.py", "exec"))
        with open(f"{folder}/made_up.pyc", "wb") as file:
            file.write(code)
            os.fsync(file.fileno())
        with open(f"{folder}/made_up.pyc", "rb") as file:
            assert hashlib.sha256(file.read()).digest() == expected, "compiled to something else"
        time.sleep(0.1)

    return step


def opened(folder: str) -> sqlite3.Connection:
    database = sqlite3.connect(f"{folder}/bank.db", timeout=600, isolation_level=None)
    assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    database.execute("PRAGMA synchronous=FULL")
    return database


def set_up_bank(folder: str) -> None:
    database = opened(folder)
    database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, money INTEGER)")
    rows = [(id, MONEY) for id in range(ACCOUNTS)]
    database.executemany("INSERT INTO account VALUES (?, ?)", rows)
    database.close()


def paying(folder: str) -> Callable[[], None]:
    database, chance = opened(folder), random.Random(1)

    def step() -> None:
        payer, payee, sum_ = chance.randrange(ACCOUNTS), chance.randrange(ACCOUNTS), chance.random()
        amount = int(sum_ * 100)
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE account SET money = money - ? WHERE id = ?", (amount, payer))
        database.execute("UPDATE account SET money = money + ? WHERE id = ?", (amount, payee))
        database.execute("COMMIT")
        time.sleep(0.05)

    return step


def counting(folder: str) -> Callable[[], None]:
    database = opened(folder)

    def step() -> None:
        (money,) = database.execute("SELECT SUM(money) FROM account").fetchone()
        assert money == ACCOUNTS * MONEY, f"there is {money} in the bank"
        (verdict,) = database.execute("PRAGMA quick_check").fetchone()
        assert verdict == "ok", verdict
        time.sleep(0.3)

    return step


def timing() -> Callable[[], None]:
    last = [time.monotonic()]

    def step() -> None:
        before = time.monotonic()
        time.sleep(0.2)
        after = time.monotonic()
        assert last[0] <= before, f"the clock fell from {last[0]} to {before}"
        assert after - before >= 0.2, f"0.2 s took {after - before}"
        last[0] = after

    return step


class _Doubler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(b"%d\n" % (2 * int(line)))


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is gone, as all are after a restore."""


def main(folder: str) -> None:
    set_up_bank(folder)
    parts = {
        "compile": compiling,
        "payments": paying,
        "audits": counting,
        "timers": lambda folder: timing(),
    }
    for name, make in parts.items():
        if not os.fork():
            Work(folder, name, make(folder)).run()
            os._exit(0)
    server = _Server(("", 8000), _Doubler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for _ in parts:
        os.wait()


if __name__ == "__main__":
    main(sys.argv[1])
