"""What a test run leaves out is said in one line, and work is handed out whole where tests share something."""

from __future__ import annotations

from collections import Counter

import pytest
from support.requires import missing_tool, require
from support.selection import describe_left_out, scope_of, short_ones_wait


@pytest.mark.parametrize(
    ("left_out", "missing", "expected"),
    [
        ({}, {}, ""),
        ({"slow": 412}, {}, "Left out: 412 slow tests. To run all of them: .ci/run"),
        ({}, {"npm": 1}, "Left out: 1 that need npm. To run all of them: .ci/run"),
        (
            {"slow": 412},
            {"redis-server": 30, "pgbouncer": 6},
            "Left out: 412 slow tests, and 36 that need pgbouncer, redis-server. To run all of them: .ci/run",
        ),
        (
            {"slow": 2, "peers": 9},
            {},
            "Left out: 2 slow tests, and 9 beside the real KCL, KPL and AWS SDKs. To run all of them: .ci/run",
        ),
    ],
)
def test_summary_says_in_one_line_what_was_left_out(
    left_out: dict[str, int], missing: dict[str, int], expected: str
) -> None:
    """How many, what they need, and what runs them."""
    assert expected == describe_left_out(Counter(left_out), Counter(missing))


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("tests/unit/config/test_settings.py::test_a[1::2]", "tests/unit/config/test_settings.py"),
        ("tests/acceptance/test_daemon.py::test_b", "tests/acceptance/test_daemon.py"),
        ("tests/acceptance/test_holding.py::test_c[x]", "tests/acceptance/test_holding.py::test_c[x]"),
        ("tests/acceptance/test_fleet.py::test_fleet_goes_on", "tests/acceptance/test_fleet.py::test_fleet_goes_on"),
        ("tests/acceptance/test_fleet.py::test_replay", "tests/acceptance/test_fleet.py"),
        ("tests/peers/test_kcl3.py::test_e", "tests/peers/test_kcl3.py::test_e"),
        ("tests/simulation/test_simulation.py::test_d[0-49]", "tests/simulation/test_simulation.py::test_d[0-49]"),
    ],
)
def test_work_is_a_file_unless_its_tests_share_nothing(nodeid: str, expected: str) -> None:
    """A module's servers are started on one process then, and long tests run side by side."""
    assert expected == scope_of(nodeid)


@pytest.mark.parametrize(
    ("count", "process_count", "expected"),
    [(9, 2, [0, 1, 7, 8, 2, 3, 4, 5, 6]), (5, 3, [0, 1, 2, 3, 4]), (2, 4, [0, 1]), (0, 2, [])],
)
def test_short_units_wait_behind_the_longest(count: int, process_count: int, expected: list[int]) -> None:
    """What is second on a process waits for the end of the first, so a long one would end late."""
    assert expected == short_ones_wait(range(count), process_count)


def test_skipped_test_names_the_tool_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the summary counts it; a test skipped for another reason needs none."""
    monkeypatch.delenv("REQUIRE_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception) as skipped:
        require("pgbouncer", found=False, how="apt-get install pgbouncer")

    assert missing_tool(f"Skipped: {skipped.value}") == "pgbouncer"
    assert missing_tool("Skipped: not on this system") is None
