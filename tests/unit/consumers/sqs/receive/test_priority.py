from __future__ import annotations

import pytest

from simplu_worker.consumers.sqs.receive.poller import GATE_MAX_WAIT_S, POLLS_AHEAD, PriorityGate


@pytest.mark.parametrize(
    ("busy_s", "expected_s"), [(0.0, 0.0), (0.02, 0.05), (0.3, 0.3), (GATE_MAX_WAIT_S, 1.0), (3600.0, GATE_MAX_WAIT_S)]
)
async def test_gate_is_shut_while_the_other_has_work_but_never_for_long(busy_s: float, expected_s: float) -> None:
    slept_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal slept_s
        slept_s += seconds

    await PriorityGate(lambda: slept_s < busy_s - 1e-9, lambda: 0, sleep=sleep)()

    assert slept_s == pytest.approx(expected_s)


async def test_gate_opens_once_after_some_polls_of_the_other() -> None:
    polls = 0

    async def sleep(_: float) -> None:
        nonlocal polls
        polls += 1

    gate = PriorityGate(lambda: True, lambda: polls, sleep=sleep)
    opened_at = []
    for _ in range(3):
        await gate()
        opened_at.append(polls)

    assert opened_at == [POLLS_AHEAD, 2 * POLLS_AHEAD, 3 * POLLS_AHEAD]
