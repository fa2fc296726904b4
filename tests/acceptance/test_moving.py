"""The program `moving.py`, small: a tenant moves under load, its mover and the worker killed on the way."""

from __future__ import annotations

import pytest
from acceptance.programs import run_program


@pytest.mark.slow(25)
def test_moves_lose_nothing_when_the_mover_and_the_worker_are_killed() -> None:
    options = ("--rows", "8000", "--moves", "2", "--kill", "--seed", "3", "--control", "5")
    out = run_program("acceptance.moving", *options)
    assert "mover killed" in out


@pytest.mark.slow(35)
def test_moves_lose_nothing_when_the_primary_of_a_shard_is_killed_on_the_way() -> None:
    options = ("--rows", "5000", "--moves", "2", "--fail-over", "--seed", "2", "--control", "5")
    out = run_program("acceptance.moving", *options)
    assert out.count("a shard failed over on the way") == 2
