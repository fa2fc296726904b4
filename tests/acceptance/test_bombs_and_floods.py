"""Bombs and floods, on a small scale: the benchmarks measure them at full size, against their targets."""

from __future__ import annotations

import pytest
from acceptance.programs import run_program


@pytest.mark.slow(20)
def test_bombs_are_decided_and_the_rows_of_their_neighbours_are_right() -> None:
    """One refused, one merged in the worker, and an aggregate; how late the neighbours are is not asserted."""
    printed = run_program(
        "benchmarks.bombs", "--bombs", "beyond,nulls,parts", "--rounds", "1", "--seconds", "1", "--p99-ratio", "1000"
    )

    assert printed.count("all decided within") == 3


@pytest.mark.slow(15)
def test_probes_are_answered_while_the_http_server_of_a_worker_is_flooded() -> None:
    """A worker that applies operations; how long the answers take is not asserted."""
    limits = ("--probe-seconds", "10", "--later-seconds", "10")
    printed = run_program("benchmarks.floods", "--floods", "half-sent,metrics", "--seconds", "1.5", *limits)

    assert printed.count("probes without an answer 200") == 2
