"""Which tests run, in what order on how many processes, and the line that says what was left out.

A slow test runs in CI, with REQUIRE_ALL=1, or when it is named, and so does one beside real peers (tests/peers).
`.ci/run` runs each test once: with --passed-to a run writes down the tests that have passed, and the files of which all
have, and with --but-passed another one leaves the tests out, and does not even read the files.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import pytest
from _pytest.pathlib import ImportMode, import_path
from support.requires import missing_tool
from xdist.scheduler.loadscope import LoadScopeScheduling

Unit = TypeVar("Unit")
# Seconds that a test takes if it does not say so in its mark, by folder: enough for an order.
USUAL_S = {"acceptance": 4.0, "field": 2.0, "integration": 0.4, "simulation": 0.4, "model": 0.5, "peers": 60.0}
SHORT_S = 0.015
# Tests that share nothing with their module's others and take so long that they run side by side.
SEPARATE = re.compile(
    r"tests/(model|peers|simulation)/"
    r"|tests/acceptance/test_moving\.py"
    r"|tests/acceptance/test_fleet\.py::test_fleet_"
)
PEERS = "tests/peers/"
GARBAGE_THRESHOLD = 20_000  # new objects between two searches for garbage; Python 3.11 begins with 700
# Tests that are not about the worker, and those that need other vendors' programs.
MARKED_FOLDERS = {
    "tests/integration/local/": "own_servers",
    "tests/unit/local/": "own_servers",
    "tests/tools/": "tools",
    "tests/repository/": "tools",
    PEERS: "peers",
}
# What a run leaves out unless it is named, by mark, and how the summary says so.
LEFT_TO_CI = {"slow": "slow tests", "peers": "beside the real KCL, KPL and AWS SDKs"}
NIGHTLY = "nightly"  # CI leaves these out too; .ci/nightly names the mark


def add_options(parser: pytest.Parser) -> None:
    """Add the options of this plugin."""
    group = parser.getgroup("selection")
    group.addoption("--passed-to", type=Path, metavar="FILE", help="write the tests that passed into FILE")
    group.addoption("--but-passed", type=Path, metavar="FILE", help="leave out the tests of such a FILE")


def scope_of(nodeid: str) -> str:
    """Return the unit of work that a test belongs to: its file, or itself."""
    return nodeid if SEPARATE.match(nodeid) else file_of(nodeid)


def file_of(nodeid: str) -> str:
    """Return the file of a test."""
    return nodeid.partition("::")[0]


class Selection:
    """A plugin of pytest; `workeroutput` is how a process of xdist speaks to the one that reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        path: Path | None = config.option.but_passed
        self._done = set() if path is None else set(path.read_text(encoding="utf-8").splitlines())
        self._left_out: Counter[str] = Counter()  # by mark
        self._partial: set[str] = set()  # files with a test that did not run
        self._passed: set[str] = set()
        self._failed: set[str] = set()
        self._missing: Counter[str] = Counter()
        self._simulated: Counter[str] = Counter()
        self._notes: list[str] = []

    def _is_left_to_ci(self, item: pytest.Item) -> bool:
        """Return whether a test is slow, beside real peers or for the night, and nothing that runs it does now."""
        if any("::" in argument for argument in self._config.args):
            return False
        if item.get_closest_marker(NIGHTLY) is not None:
            return NIGHTLY not in self._config.option.markexpr
        if os.environ.get("REQUIRE_ALL") == "1":
            return False
        for mark in LEFT_TO_CI:
            if item.get_closest_marker(mark) is not None and mark not in self._config.option.markexpr:
                self._left_out[mark] += 1
                return True
        return False

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Mark what is not about the worker."""
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
        found = {file for folder in folders if folder.is_dir() for file in folder.rglob("test_*.py")}
        files = sorted(file for file in found if not self._is_done(file))
        number = int(workerinput["workerid"].removeprefix("gw"))
        for file in files[number :: workerinput["workercount"]]:
            with contextlib.suppress(Exception):  # the collection reports it
                import_path(file, mode=ImportMode.importlib, root=config.rootpath, consider_namespace_packages=False)

    def _is_done(self, path: Path) -> bool:
        return bool(self._done) and path.relative_to(self._config.rootpath).as_posix() in self._done

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Leave out the files of which all tests have passed."""
        return True if self._is_done(collection_path) else None

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Take note of what does not run."""
        self._partial.update(file_of(item.nodeid) for item in items)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what is not to run; on many processes begin with what takes longest."""
        kept: list[pytest.Item] = []
        left_out: list[pytest.Item] = []
        for item in items:
            (left_out if self._is_left_to_ci(item) or item.nodeid in self._done else kept).append(item)
        config.hook.pytest_deselected(items=left_out)
        workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)
        items[:] = kept if workerinput is None else longest_first(kept, workerinput["workercount"])

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
            self._failed.add(report.nodeid)
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")  # none in a process of xdist
            if terminal is not None:
                terminal.write_line(f"\nFAILED {report.nodeid}")
        elif report.passed and report.when == "call":
            self._passed.add(report.nodeid)
        elif report.skipped:
            self._partial.add(file_of(report.nodeid))
            if tool := missing_tool(str(report.longrepr[2])):  # type: ignore[index]  # path, line, reason
                self._missing[tool] += 1
        if report.when == "call":
            properties: list[tuple[str, Any]] = report.user_properties
            for name, value in properties:
                if name == "simulated":
                    self._simulated.update(value)
                elif name == "note":
                    self._notes.append(str(value))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what a process of xdist has left out: all have the same."""
        output: dict[str, Any] = getattr(node, "workeroutput", {})
        self._left_out = Counter(output.get("left_out", self._left_out))
        self._partial.update(output.get("partial", ()))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Tell the one that reports, or write down what passed."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput.update(left_out=dict(self._left_out), partial=sorted(self._partial))
        elif (path := session.config.option.passed_to) is not None:
            passed = self._passed - self._failed
            whole = {*map(file_of, passed)} - {*map(file_of, self._failed)} - self._partial
            path.write_text("".join(f"{one}\n" for one in sorted(passed | whole)), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what ran beyond the tests' names, and in one line what did not run."""
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


def longest_first(items: Iterable[pytest.Item], process_count: int) -> list[pytest.Item]:
    """Return *items* by units of work, those first that take longest, and units of all folders in turn.

    What waits for servers, programs above all, leaves the processors to what computes.
    """
    by_scope: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        by_scope[scope_of(item.nodeid)].append(item)
    by_folder: dict[str, list[list[pytest.Item]]] = defaultdict(list)
    for scope, unit in by_scope.items():
        by_folder[_folder_of(scope)].append(unit)
    placed = [pair for units in by_folder.values() for pair in _by_share(units)]
    placed.sort(key=lambda pair: pair[0])
    return [item for unit in short_ones_wait([unit for _, unit in placed], process_count) for item in unit]


def short_ones_wait(units: Sequence[Unit], process_count: int) -> list[Unit]:
    """Return *units*, which are ordered by their length, with the last ones as the second ones of the processes.

    A process of xdist has two units at first, and no other process can take the second one from it.
    """
    first, rest = units[:process_count], units[process_count:]
    return [*first, *rest[-process_count:], *rest[:-process_count]]


def _folder_of(nodeid: str) -> str:
    return nodeid.split("/")[1]


def _by_share(units: Sequence[list[pytest.Item]]) -> Iterator[tuple[float, list[pytest.Item]]]:
    """Yield *units*, the longest first, with the share of the time of all of them that is over when they begin."""
    ordered = sorted(units, key=_seconds_of_all, reverse=True)
    seconds = list(map(_seconds_of_all, ordered))
    for begins_s, unit in zip(accumulate(seconds, initial=0.0), ordered, strict=False):
        yield begins_s / sum(seconds), unit


def _seconds_of_all(items: Iterable[pytest.Item]) -> float:
    return sum(map(_seconds_of, items))


def _seconds_of(item: pytest.Item) -> float:
    for mark in item.iter_markers():
        if mark.name in LEFT_TO_CI and mark.args:
            return float(mark.args[0])
    return USUAL_S.get(_folder_of(item.nodeid), SHORT_S)


def describe_left_out(left_out: Counter[str], missing: Counter[str]) -> str:
    """Return the line that says what did not run; empty when everything did. *left_out* counts tests by mark."""
    parts = [f"{left_out[mark]} {what}" for mark, what in LEFT_TO_CI.items() if left_out[mark]]
    if missing:
        parts.append(f"{missing.total()} that need {', '.join(sorted(missing))}")
    return f"Left out: {', and '.join(parts)}. To run all of them: .ci/run" if parts else ""
