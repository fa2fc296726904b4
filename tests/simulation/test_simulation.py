"""The worker's Kinesis side as a whole: thousands of random histories, none of which may break an invariant.

SIMULATION_SEED=17 runs one seed and shows what happens in it; SIMULATION_SEED=10000:20000 runs others than the usual.
SIMULATION_STORM_SEED, SIMULATION_GREAT_STORM_SEED, SIMULATION_DEFECTS_SEED, SIMULATION_MOVES_SEED,
SIMULATION_RESHARDS_SEED, SIMULATION_FEEDS_SEED and SIMULATION_WHOLE_SEED do the same for the other weathers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import msgspec
import pytest
import structlog
from simulation.campaign import FLOOR, VARIABLES
from simulation.kcl_leader import hand_leases_over
from simulation.noticing import FURTHER, seed_of
from simulation.simulated_world import ViolationError, Weather
from simulation.simulation import simulate
from simulation.wrong_designs import WRONG_DESIGNS, WrongDesign
from simulation.wrong_whole import WRONG_IN_WHOLE
from structlog.types import EventDict, WrappedLogger
from support.slow import slow_after

QUICK = {
    Weather.FAIR: 5,
    Weather.STORM: 1,
    Weather.GREAT_STORM: 0,
    Weather.DEFECTS: 2,
    Weather.MOVES: 1,
    Weather.RESHARDS: 1,
    Weather.FEEDS: 1,
    Weather.WHOLE: 1,
}
BLOCK = {weather: max(count, 1) for weather, count in QUICK.items()}  # seeds of a test
KCL_SEEDS = 10  # with a leader of the KCL 3.x beside the replicas
KCL_BLOCK = 2  # seeds of a test
SEEDS_UNTIL_FOUND = 600
DESIGNS = {**WRONG_DESIGNS, **WRONG_IN_WHOLE}


def blocks_of(weather: Weather) -> list[Any]:
    """Return the seeds to run, a block for each test; what is beyond the quick ones is slow."""
    first, _, end = os.environ.get(VARIABLES[weather], f"0:{FLOOR[weather]}").partition(":")
    is_usual = VARIABLES[weather] not in os.environ
    last, size = int(end or int(first) + 1), BLOCK[weather]
    blocks = [range(at, min(at + size, last)) for at in range(int(first), last, size)]
    slow = [[pytest.mark.slow] if is_usual and block.start >= QUICK[weather] else [] for block in blocks]
    return [
        pytest.param(weather, block, marks=marks, id=f"{weather.value}-{block.start}-{block.stop - 1}")
        for block, marks in zip(blocks, slow, strict=True)
    ]


def designs() -> list[Any]:
    slow = [[pytest.mark.slow] if wrong.weather is Weather.GREAT_STORM else [] for wrong in DESIGNS.values()]
    return [pytest.param(name, marks=marks) for name, marks in zip(DESIGNS, slow, strict=True)]


@pytest.fixture(autouse=True)
def log_of_simulation() -> Iterator[None]:
    before = structlog.get_config()
    is_one = any(":" not in os.environ.get(variable, ":") for variable in VARIABLES.values())
    level = logging.INFO if is_one else logging.CRITICAL
    structlog.configure(processors=[_show], wrapper_class=structlog.make_filtering_bound_logger(level))
    yield
    structlog.configure(**before)


def _show(_logger: WrappedLogger, _level: str, event: EventDict) -> NoReturn:
    facts: dict[str, Any] = dict(event)
    print(f"{asyncio.get_running_loop().time():9.3f} {facts.pop('event')} {facts}")  # noqa: T201
    raise structlog.DropEvent


Note = Callable[[str, object], None]


@pytest.mark.parametrize(("weather", "seeds"), [block for weather in Weather for block in blocks_of(weather)])
def test_nothing_is_lost_doubled_or_out_of_order(weather: Weather, seeds: range, record_property: Note) -> None:
    """Kills, stops, reshards, outages and lost answers: each record ends once, in order, before a checkpoint passes it.

    And when all is repaired, every stream shard is read by its one owner, and the leases are even and stay. In the
    weather of all that the product does the same holds for order events beside the stream, while tenants move and
    clocks are wrong; and each of the feed's receivers holds the events of all changes, those of a resource in their
    order, none under two ids, and none of a commit that a shard has lost, though publishers are killed and receivers
    fail.
    """
    for seed in seeds:
        try:
            simulate(seed, weather=weather)
        except ViolationError as exc:
            exc.add_note(f"to see it again: {VARIABLES[weather]}={seed} pytest tests/simulation/test_simulation.py")
            raise
    record_property("simulated", {weather.value: len(seeds)})


@pytest.mark.parametrize("first_seed", slow_after(1, range(0, KCL_SEEDS, KCL_BLOCK)))
def test_nothing_is_lost_doubled_or_out_of_order_while_a_kcl_leader_has_leases_handed_over(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + KCL_BLOCK):
        simulate(seed, twist=hand_leases_over)


@pytest.mark.parametrize(("weather", "seed"), [(Weather.FAIR, 3), (Weather.WHOLE, 6)])
def test_simulation_is_the_same_when_repeated(weather: Weather, seed: int) -> None:
    first, second = simulate(seed, weather=weather), simulate(seed, weather=weather)

    assert (first.loop.time(), first.table.rows) == (second.loop.time(), second.table.rows)
    assert [one.came for one in first.receivers] == [one.came for one in second.receivers]
    assert first.draws.getstate() == second.draws.getstate()


@pytest.mark.slow
@pytest.mark.parametrize("design", designs())
def test_simulation_notices_when_a_design_is_wrong(design: str, record_property: Note) -> None:
    """Each rule that is left out shows with the seed that the design names, or soon after it.

    A change of what a simulation draws moves the seed: the summary of the run says which one to write into the design.
    """
    wrong = DESIGNS[design]
    seeds = range(wrong.seed, wrong.seed + SEEDS_UNTIL_FOUND)
    found = next((seed for seed in seeds if is_noticed(seed, wrong)), None)
    assert found is not None, f"no violation with the seeds {seeds}"
    if found != wrong.seed:
        record_property("note", f"{design}: the design names seed {wrong.seed}, and seed {found} shows it")


@pytest.mark.nightly
@pytest.mark.parametrize("design", [one for one in FURTHER if seed_of(one) is not None])
def test_simulation_notices_when_a_further_design_is_wrong(design: str) -> None:
    found = seed_of(design)
    assert found is not None
    weather, first = found
    wrong = msgspec.structs.replace(FURTHER[design], weather=weather)
    assert any(is_noticed(seed, wrong) for seed in range(first, first + SEEDS_UNTIL_FOUND))


def is_noticed(seed: int, wrong: WrongDesign) -> bool:
    try:
        simulate(seed, weather=wrong.weather, make_fleet=wrong.make_fleet, twist=wrong.twist)
    except ViolationError:
        return True
    return False
