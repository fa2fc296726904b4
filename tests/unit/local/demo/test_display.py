"""What the demo prints on its way and at its end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from simplu_local.demo.display import print_conclusion
from simplu_local.demo.trial import TrialResult
from simplu_local.verify.comparison import ComparisonReport
from simplu_local.verify.shard_checker import ApplyProgress

PASSED = "Passed: every row of every shard is as expected, and the worker ended with status 0.\n"
NEXT = "Next: run `make demo ARGS=--hold` and open the status page that it names.\n"


def result_with(*, differences: list[str], finished_count: int = 1) -> TrialResult:
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
def test_conclusion_has_a_line_a_sentence_and_what_to_try_next(
    result: TrialResult, *, was_held: bool, expected: tuple[int, str]
) -> None:
    written = io.StringIO()
    status = print_conclusion(Console(file=written, width=80), result, was_held=was_held)
    assert (status, written.getvalue()) == expected
