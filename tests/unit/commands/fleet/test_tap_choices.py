"""The words that `tap` takes: its command line names them itself, so that `--help` does not import the metrics."""

from __future__ import annotations

from typing import get_args

from simplu_worker.commands.fleet.cli import Kind, Outcome
from simplu_worker.metrics.instruments import OPERATION_KINDS, OPERATION_OUTCOMES


def test_choices_are_the_kinds_and_outcomes_that_are_counted() -> None:
    """In the same order."""
    assert get_args(Kind) == OPERATION_KINDS
    assert get_args(Outcome) == OPERATION_OUTCOMES
