"""A log that is deleted as fast as it grows, on a small scale: `run.py bench retention` shows it at full size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from acceptance.programs import run_program

pytestmark = pytest.mark.slow(15)

SMALL = ("--operations", "10000", "--kept", "3000", "--rate", "2000", "--resources", "3000", "--stream-shards", "4")


def test_benchmark_of_retention_applies_every_record_and_deletes_old_rows(tmp_path: Path) -> None:
    """Of the flow and of its trickle, and the samples have the sizes."""
    figures = tmp_path / "figures.json"

    printed = run_program("benchmarks.retention", *SMALL, "--slack", "0", "--json", str(figures), status=1)

    samples = json.loads(figures.read_text(encoding="utf-8"))["samples"]
    assert len(samples) == 20
    assert samples[-1]["operations"] >= 7000  # the last sample is a second and a half before the end
    assert samples[-1]["sizes"]["deleted"] > 0
    assert samples[-1]["deletions"]["calls"] > 0
    assert sum(len(one["latenciesS"]) for one in samples) > 100
    assert "MISSED" in printed  # bounds of 0
