"""What people see while a shard is adopted."""

from __future__ import annotations

import pytest

from simplu_worker.commands.shards.adopt import REPORT_INTERVAL_S, AdoptionProgress
from simplu_worker.shards.adoption.adopter import AdoptionReporter, AdoptionStep


def test_progress_is_a_line_now_and_then_when_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """On stderr, at most one every ten seconds, with the share where it is known."""
    now = 0.0
    with AdoptionProgress(clock=lambda: now) as progress:
        progress.show(AdoptionReporter(AdoptionStep.COPYING, 10, 100))
        now = REPORT_INTERVAL_S
        progress.show(AdoptionReporter(AdoptionStep.COPYING, 25, 100))
        progress.show(AdoptionReporter(AdoptionStep.COPYING, 30, 100))
        now = 2 * REPORT_INTERVAL_S
        progress.show(AdoptionReporter(AdoptionStep.CATCHING_UP))

    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "copying rows, 25%\ncatching up\n"
