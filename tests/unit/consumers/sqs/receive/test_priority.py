"""How long the polls of one queue wait for another."""

from __future__ import annotations

import pytest

from simplu_worker.consumers.sqs.receive.priority import GATE_MAX_WAIT_S, PriorityGate


@pytest.mark.parametrize(
    ("busy_s", "expected_s"), [(0.0, 0.0), (0.02, 0.05), (0.3, 0.3), (GATE_MAX_WAIT_S, 1.0), (3600.0, GATE_MAX_WAIT_S)]
)
async def test_gate_is_shut_while_the_other_has_work_but_never_for_long(busy_s: float, expected_s: float) -> None:
    """A poll waits while the other queue has work, for at most a second."""
    slept_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal slept_s
        slept_s += seconds

    await PriorityGate(lambda: slept_s < busy_s - 1e-9, sleep=sleep)()

    assert slept_s == pytest.approx(expected_s)
