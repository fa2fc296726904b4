"""The program `moving.py`, small: a tenant moves under load, its mover and the worker killed on the way."""

from __future__ import annotations

import pytest
from acceptance.programs import run_program


@pytest.mark.slow(40)
def test_moves_lose_nothing_when_the_mover_and_the_worker_are_killed() -> None:
    """Every operation once, in order, on the tenant's shard; every certificate equal."""
    out = run_program("acceptance.moving", "--rows", "20000", "--moves", "3", "--kill", "--seed", "3")
    assert "mover killed" in out
