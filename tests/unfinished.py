"""A plugin of pytest's: run what has not passed yet, however the run before it ended.

`--last-failed` knows nothing of a run that was killed, or whose whole machine stood still. Here
each test that has passed is noted at once, and a run with the same file leaves it out.

    pytest -p tests.unfinished --passed FILE ...
"""

from __future__ import annotations

from pathlib import Path

import pytest


class Unfinished:
    """Notes what passes in `path`, one node id a line, and leaves out what is there already."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._passed_before = set(path.read_text().splitlines()) if path.exists() else set()
        self._left_out = 0
        self._failed: set[str] = set()

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        passed = [item for item in items if item.nodeid in self._passed_before]
        config.hook.pytest_deselected(items=passed)
        self._left_out = len(passed)
        items[:] = [item for item in items if item.nodeid not in self._passed_before]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)
        elif report.when == "teardown" and report.nodeid not in self._failed:
            with self._path.open("a") as file:
                file.write(f"{report.nodeid}\n")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._left_out:
            session.exitstatus = pytest.ExitCode.OK


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--passed", type=Path, metavar="FILE", help="what need not run again")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("passed"):
        path.parent.mkdir(parents=True, exist_ok=True)
        config.pluginmanager.register(Unfinished(path))
