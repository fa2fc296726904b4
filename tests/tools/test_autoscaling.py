"""The notes have the simulated day of the chart."""

from __future__ import annotations

import pytest
from support.requires import ROOT

from benchmarks.autoscaling.__main__ import CHART, COMMAND, report, results
from benchmarks.autoscaling.day import LATE_S
from benchmarks.throughput.page import replace_part


@pytest.mark.nightly
def test_notes_have_the_day_in_which_the_chart_does_not_flap() -> None:
    page = (ROOT / "benchmarks" / "NOTES.md").read_text(encoding="utf-8")
    assert replace_part(page, "autoscaling", COMMAND, report()) == page
    days = results()
    chart, always_all = days[CHART], days["always as many as stream shards"]
    assert chart.flaps <= 1
    assert chart.longest_lag_s <= 2 * LATE_S
    assert chart.replica_hours < 0.4 * always_all.replica_hours
    assert days["oldest lag alone"].flaps > 10
    assert chart.longest_wait_s < days["late stream shards and processor time"].longest_wait_s
