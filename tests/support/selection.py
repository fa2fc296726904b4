"""Which tests run, the longest first on many processes, and the line that says what was left out.

A slow test runs in CI, with REQUIRE_ALL=1, or when it is named, and so does one beside real peers (tests/peers).
`.ci/run` runs each test once: `--passed-to` writes down the tests that have passed, and `--but-passed` leaves them out.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from _pytest.pathlib import ImportMode, import_path
from support.requires import missing_tool
from xdist.scheduler.loadscope import LoadScopeScheduling

# Seconds that a test takes if it does not say so in its mark, by folder: enough for an order.
USUAL_S = {"acceptance": 4.0, "field": 2.0, "integration": 0.4, "simulation": 0.4, "model": 0.5, "peers": 20.0}
SHORT_S = 0.015
# Tests that share nothing with their module's others and take so long that they run side by side.
SEPARATE = re.compile(r"tests/(model|peers|simulation)/|tests/acceptance/test_programs\.py")
GARBAGE_THRESHOLD = 20_000  # new objects between two searches for garbage; Python 3.11 begins with 700
# Tests that are not about the worker, and those that need other vendors' programs.
MARKED_FOLDERS = {
    "tests/integration/local/": "own_servers",
    "tests/unit/local/": "own_servers",
    "tests/tools/": "tools",
    "tests/repository/": "tools",
    "tests/peers/": "peers",
}
# What a run leaves out unless it is named, by mark, and how the summary says so.
LEFT_TO_CI = {"slow": "slow tests", "peers": "beside the real KCL, KPL and AWS SDKs"}
NIGHTLY = "nightly"  # CI leaves these out too; .ci/nightly names the mark


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("selection")
    group.addoption("--passed-to", type=Path, metavar="FILE", help="write the tests that passed into FILE")
    group.addoption("--but-passed", type=Path, metavar="FILE", help="leave out the tests of such a FILE")


def scope_of(nodeid: str) -> str:
    return nodeid if SEPARATE.match(nodeid) else nodeid.partition("::")[0]


class Selection:
    """A plugin of pytest; `workeroutput` is how a process of xdist speaks to the one that reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        path: Path | None = config.option.but_passed
        self._done = set() if path is None else set(path.read_text(encoding="utf-8").splitlines())
        self._left_out: Counter[str] = Counter()  # by mark
        self._passed: set[str] = set()
        self._missing: Counter[str] = Counter()
        self._simulated: Counter[str] = Counter()
        self._notes: list[str] = []

    def _is_left_out(self, item: pytest.Item) -> bool:
        if item.nodeid in self._done:
            return True
        if any("::" in argument for argument in self._config.args):
            return False
        chosen: str = self._config.option.markexpr
        if item.get_closest_marker(NIGHTLY) is not None:
            return NIGHTLY not in chosen
        if os.environ.get("REQUIRE_ALL") == "1":
            return False
        marks = [mark for mark in LEFT_TO_CI if item.get_closest_marker(mark) is not None and mark not in chosen]
        self._left_out.update(marks[:1])
        return bool(marks)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        for folder, mark in MARKED_FOLDERS.items():
            if item.nodeid.startswith(folder):
                item.add_marker(mark)

    def pytest_collection(self, session: pytest.Session) -> None:
        """On many processes, each imports its share of the files first.

        Where nothing is compiled yet, each would compile all of them at the same time.
        """
        config = session.config
        workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)
        if workerinput is None:
            return
        folders = [config.rootpath / argument for argument in config.args]
        files = sorted({file for folder in folders if folder.is_dir() for file in folder.rglob("test_*.py")})
        number = int(workerinput["workerid"].removeprefix("gw"))
        for file in files[number :: workerinput["workercount"]]:
            with contextlib.suppress(Exception):  # the collection reports it
                import_path(file, mode=ImportMode.importlib, root=config.rootpath, consider_namespace_packages=False)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what is not to run; on many processes begin with what takes longest."""
        left_out: list[pytest.Item] = []
        kept: list[pytest.Item] = []
        for item in items:
            (left_out if self._is_left_out(item) else kept).append(item)
        config.hook.pytest_deselected(items=left_out)
        items[:] = longest_first(kept) if hasattr(config, "workerinput") else kept

    def pytest_collection_finish(self) -> None:
        """Take what is there before the first test, hundreds of thousands of objects, out of the collector's work.

        Searches of all of them for garbage took an eighth of the processor time of tests that compute.
        """
        gc.freeze()
        gc.set_threshold(GARBAGE_THRESHOLD)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScopeScheduling:
        """Give whole files to a process, for what their tests share, and single tests where they share nothing."""
        config.option.loadscopereorder = False
        return _Scheduling(config, log)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count what the summary tells, and name a failure at once: a run that is ended has no summary."""
        if report.failed:
            self._passed.discard(report.nodeid)
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")  # none in a process of xdist
            if terminal is not None:
                terminal.write_line(f"\nFAILED {report.nodeid}")
        elif report.skipped:
            if tool := missing_tool(str(report.longrepr[2])):  # type: ignore[index]  # path, line, reason
                self._missing[tool] += 1
        elif report.when == "call":
            self._passed.add(report.nodeid)
        if report.when == "call":
            properties: list[tuple[str, Any]] = report.user_properties
            for name, value in properties:
                if name == "simulated":
                    self._simulated.update(value)
                elif name == "note":
                    self._notes.append(str(value))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._left_out = Counter(getattr(node, "workeroutput", {}).get("left_out", self._left_out))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["left_out"] = dict(self._left_out)
        elif (path := session.config.option.passed_to) is not None:
            path.write_text("".join(f"{one}\n" for one in sorted(self._passed)), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for note in self._notes:
            terminalreporter.write_line(note)
        if self._simulated:
            counts = ", ".join(f"{count} {weather}" for weather, count in self._simulated.items())
            terminalreporter.write_line(f"Simulated histories: {counts}")
        if line := describe_left_out(self._left_out, self._missing):
            terminalreporter.write_line(line)


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def longest_first(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    units: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        units[scope_of(item.nodeid)].append(item)
    ordered = sorted(units.values(), key=lambda unit: sum(map(_seconds_of, unit)), reverse=True)
    return [item for unit in ordered for item in unit]


def _seconds_of(item: pytest.Item) -> float:
    for mark in item.iter_markers():
        if mark.name in LEFT_TO_CI and mark.args:
            return float(mark.args[0])
    return USUAL_S.get(item.nodeid.split("/")[1], SHORT_S)


def describe_left_out(left_out: Counter[str], missing: Counter[str]) -> str:
    """Return the line that says what did not run; empty when everything did. *left_out* counts tests by mark."""
    parts = [f"{left_out[mark]} {what}" for mark, what in LEFT_TO_CI.items() if left_out[mark]]
    if missing:
        parts.append(f"{missing.total()} that need {', '.join(sorted(missing))}")
    return f"Left out: {', and '.join(parts)}. To run all of them: .ci/run" if parts else ""
