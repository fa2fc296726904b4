"""Receivers of one FIFO queue, restarted and hindered at random, in virtual time: order holds and nothing is lost."""

from __future__ import annotations

import pytest
from simulation.queue_histories import WRONG_ABOUT_QUEUES, are_queues_wrong, check_queues
from simulation.sqs_world import World, virtually
from support.slow import slow_after

SEEDS_UNTIL_FOUND = 20


@pytest.mark.parametrize("seed", slow_after(4, range(16)))
def test_order_holds_and_nothing_is_lost_whatever_happens(seed: int) -> None:
    async def test(world: World) -> None:
        await check_queues(world, seed)

    virtually(test)()


@pytest.mark.slow
@pytest.mark.parametrize("design", WRONG_ABOUT_QUEUES)
def test_histories_of_queues_notice_when_a_design_is_wrong(design: str) -> None:
    wrong = WRONG_ABOUT_QUEUES[design]
    assert any(are_queues_wrong(seed, wrong) for seed in range(wrong.seed, wrong.seed + SEEDS_UNTIL_FOUND))
