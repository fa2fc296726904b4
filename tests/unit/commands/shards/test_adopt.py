"""What people see while a shard is adopted."""

from __future__ import annotations

import pytest

from simplu_worker.commands.shards.adopt import REPORT_INTERVAL_S, AdoptionReporter
from simplu_worker.transfers.adoption.adopter import AdoptionProgress, AdoptionStep


def test_progress_is_a_line_now_and_then_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with AdoptionReporter(clock=lambda: now) as progress:
        progress.show(AdoptionProgress(AdoptionStep.COPYING, 10, 100))
        now = REPORT_INTERVAL_S
        progress.show(AdoptionProgress(AdoptionStep.COPYING, 25, 100))
        progress.show(AdoptionProgress(AdoptionStep.COPYING, 30, 100))
        now = 2 * REPORT_INTERVAL_S
        progress.show(AdoptionProgress(AdoptionStep.CATCHING_UP))

    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "copying rows, 25%\ncatching up\n"
