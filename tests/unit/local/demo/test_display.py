"""What the demo prints on its way and at its end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from simplu_local.demo.display import Display, print_conclusion
from simplu_local.demo.trial import TrialResult, TrialSnapshot
from simplu_local.verify.comparison import ComparisonReport
from simplu_local.verify.shard_checker import ApplyProgress

PASSED = "Passed: every row of every shard is as expected, and the worker ended with status 0.\n"
NEXT = "Next: run `make demo ARGS=--hold` and open the status page that it names.\n"


def result_with(*, differences: list[str], finished_count: int = 1) -> TrialResult:
    """Return the result of a trial of one record."""
    progress = ApplyProgress(expected_count=1, finished_count=finished_count, shards=(), dead_letter_count=0)
    return TrialResult(ComparisonReport(differences), progress, produced=1, elapsed_s=1.0, put={})


@pytest.mark.parametrize(
    ("result", "was_held", "expected"),
    [
        (result_with(differences=[]), False, (0, PASSED + NEXT)),
        (result_with(differences=[]), True, (0, PASSED)),
        (result_with(differences=["a row"]), False, (1, "failed: 1 differences\n")),
        (
            result_with(differences=[], finished_count=0),
            True,
            (1, "failed: some records left neither a row nor a dead letter in time\n"),
        ),
    ],
    ids=["passed", "passed, after --hold", "a difference", "a record that is not finished"],
)
def test_conclusion_has_each_sentence_on_one_line_and_what_to_try_next(
    result: TrialResult, *, was_held: bool, expected: tuple[int, str]
) -> None:
    written = io.StringIO()
    status = print_conclusion(Console(file=written, width=80), result, was_held=was_held)
    assert (status, written.getvalue()) == expected


def test_demo_that_stands_still_tells_for_how_long() -> None:
    now, written = [0.0], io.StringIO()
    display = Display(Console(file=written, width=200), clock=lambda: now[0])
    for seconds, finished in ((0, 5), (3, 5), (9, 5), (12, 6)):
        now[0] = seconds
        progress = ApplyProgress(expected_count=9, finished_count=finished, shards=(), dead_letter_count=0)
        display.show(TrialSnapshot("applying", 9, 9, float(seconds), progress), 0.0)
    lines = [line.partition("/s  ")[2] for line in written.getvalue().splitlines()]
    assert lines == ["lag 0 ms", "lag 0 ms", "nothing finished for 9 s", "lag 0 ms"]
