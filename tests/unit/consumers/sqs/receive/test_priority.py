from __future__ import annotations

from typing import Any

import pytest

from simplu_worker.consumers.sqs.receive.receiver import GATE_MAX_WAIT_S, POLLS_AHEAD, PriorityGate


class Prior:
    """A queue that is busy for some seconds, and polls once while another one sleeps."""

    def __init__(self, busy_s: float, *, polls: bool) -> None:
        self.slept_s, self.poll_count = 0.0, 0
        self._busy_s, self._polls = busy_s, polls

    @property
    def is_busy(self) -> bool:
        return self.slept_s < self._busy_s - 1e-9

    async def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self.poll_count += self._polls


@pytest.mark.parametrize(
    ("busy_s", "expected_s"), [(0.0, 0.0), (0.02, 0.05), (0.3, 0.3), (GATE_MAX_WAIT_S, 1.0), (3600.0, GATE_MAX_WAIT_S)]
)
async def test_gate_is_shut_while_the_other_has_work_not_for_long(busy_s: float, expected_s: float) -> None:
    prior: Any = Prior(busy_s, polls=False)
    await PriorityGate(prior, sleep=prior.sleep)()
    assert prior.slept_s == pytest.approx(expected_s)


async def test_gate_opens_once_after_some_polls_of_the_other() -> None:
    prior: Any = Prior(3600.0, polls=True)
    gate = PriorityGate(prior, sleep=prior.sleep)
    opened_at = []
    for _ in range(3):
        await gate()
        opened_at.append(prior.poll_count)
    assert opened_at == [POLLS_AHEAD, 2 * POLLS_AHEAD, 3 * POLLS_AHEAD]
