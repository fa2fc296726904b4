"""Provisioning killed and run twice at once, on a small scale: the program beside it does so at every step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN_S = 300.0

pytestmark = pytest.mark.slow  # they take a quarter of a minute each


def run(program: str, *arguments: str) -> str:
    """Run a program to its end and return what it printed."""
    argv = [sys.executable, str(ROOT / program), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=RUN_S)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def test_provisioning_leaves_one_home_when_it_is_killed_or_run_twice() -> None:
    """Whatever step was the last one, and whatever Citrus says, the next run comes to one home with its one row."""
    said = run("tests/acceptance/provisioning.py", "--stride", "11", "--rounds", "6")

    assert "every tenant has one home, with its one row" in said


def test_provisioning_makes_a_burst_of_tenants_in_few_transactions() -> None:
    """200 that are asked for at once are on their shards within seconds, each of which got its schema once."""
    answer = json.loads(run("benchmarks/provisioning.py", "--json", "--most-seconds", "60"))

    assert [shard["schemaLocks"] for shard in answer["shards"].values()] == [1, 1, 1, 1]
    assert sum(shard["transactions"] for shard in answer["shards"].values()) <= 40
