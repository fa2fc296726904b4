"""One Postgres shard in every kind of trouble, on a small scale: `make bench-isolation` tells the full costs."""

from __future__ import annotations

import json

import pytest
from acceptance.programs import run_program
from support.requires import require


@pytest.mark.slow(25)
def test_worker_goes_on_for_all_others_in_whatever_trouble_a_shard_is() -> None:
    """Nothing is lost, doubled or out of order, the others go on, and the shard does so when it is back.

    Of a shard that is killed or frozen `test_failures.py` shows it, and `test_promotion.py` of one that fails over.
    """
    small = ("--troubles", "slow,disk", "--seconds", "2", "--rate", "100", "--shards", "3", "--stream-shards", "4")
    # Whether they go on at all; how well is for a machine that does nothing else.
    loose = ("--p99-ratio", "50", "--rate-ratio", "0.3", "--first-seconds", "30", "--last-seconds", "60")
    answer = json.loads(run_program("benchmarks.isolation", *small, *loose, "--json"))

    held = {run["trouble"]: run["held"] for run in answer["runs"]}
    assert all(held.values()), f"a trouble that held nothing up was none: {held}"
    require("every trouble", found=not answer["skipped"], how=str(answer["skipped"]))
