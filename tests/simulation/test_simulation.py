"""The worker's Kinesis side as a whole: thousands of random histories, none of which may break an invariant.

SIMULATION_SEED=17 runs one seed and tells what happens in it; SIMULATION_SEED=10000:20000 runs others than the usual,
which are 400, and ten times as many in CI. SIMULATION_STORM_SEED does the same for those in a storm, a third as many,
and SIMULATION_GREAT_STORM_SEED for those in a great one, a thirtieth.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import structlog
from simulation.simulated_world import ViolationError, Weather
from simulation.simulation import simulate
from simulation.wrong_designs import WRONG_DESIGNS, WrongDesign
from structlog.types import EventDict, WrappedLogger

IS_CI = os.environ.get("REQUIRE_ALL") == "1"
SEEDS = os.environ.get("SIMULATION_SEED", "0:4000" if IS_CI else "0:400")
STORM_SEEDS = os.environ.get("SIMULATION_STORM_SEED", "0:1300" if IS_CI else "0:130")
GREAT_STORM_SEEDS = os.environ.get("SIMULATION_GREAT_STORM_SEED", "0:130" if IS_CI else "0:13")
BLOCK = 50
GREAT_BLOCK = 10
SEEDS_UNTIL_FOUND = 600


def blocks_of(seeds: str, block: int = BLOCK) -> list[range]:
    """Return the seeds to run, some at a time: a test for each would take longer than its run."""
    first, _, end = seeds.partition(":")
    last = int(end or int(first) + 1)
    return [range(at, min(at + block, last)) for at in range(int(first), last, block)]


@pytest.fixture(autouse=True)
def log_of_simulation() -> Iterator[None]:
    """Drop what is logged; with one seed to run, show it with the virtual time."""
    before = structlog.get_config()
    is_one = not all(":" in seeds for seeds in (SEEDS, STORM_SEEDS, GREAT_STORM_SEEDS))
    level = logging.INFO if is_one else logging.CRITICAL
    structlog.configure(processors=[_show], wrapper_class=structlog.make_filtering_bound_logger(level))
    yield
    structlog.configure(**before)


def _show(_logger: WrappedLogger, _level: str, event: EventDict) -> NoReturn:
    facts: dict[str, Any] = dict(event)
    print(f"{asyncio.get_running_loop().time():9.3f} {facts.pop('event')} {facts}")  # noqa: T201
    raise structlog.DropEvent


def name_of(seeds: range) -> str:
    """Return what a block of seeds is called."""
    return f"{seeds.start}-{seeds.stop - 1}"


@pytest.mark.parametrize("seeds", blocks_of(SEEDS), ids=name_of)
def test_nothing_is_lost_doubled_or_out_of_order_whatever_happens(seeds: range) -> None:
    """Kills, stops, reshards, outages and lost answers: each record ends once, in order, before a checkpoint passes it.

    And when all is repaired, every stream shard is read by its one owner, and the leases are even and stay.
    """
    check(seeds, "SIMULATION_SEED")


@pytest.mark.parametrize("seeds", blocks_of(STORM_SEEDS), ids=name_of)
def test_nothing_is_lost_doubled_or_out_of_order_in_a_storm(seeds: range) -> None:
    """The same where commits are lost, stream shards split and replicas killed while others of them are made good."""
    check(seeds, "SIMULATION_STORM_SEED", Weather.STORM)


@pytest.mark.parametrize("seeds", blocks_of(GREAT_STORM_SEEDS, GREAT_BLOCK), ids=name_of)
def test_nothing_is_lost_doubled_or_out_of_order_in_a_great_storm(seeds: range) -> None:
    """The same with more tenants, records and replicas, and more of everything that happens."""
    check(seeds, "SIMULATION_GREAT_STORM_SEED", Weather.GREAT_STORM)


def check(seeds: range, variable: str, weather: Weather = Weather.FAIR) -> None:
    """Simulate all *seeds*; say how to see again the one that broke a rule."""
    for seed in seeds:
        try:
            simulate(seed, weather=weather)
        except ViolationError as exc:
            exc.add_note(f"to see it again: {variable}={seed} pytest tests/simulation/test_simulation.py")
            raise


def test_simulation_is_the_same_when_repeated() -> None:
    """A seed that failed can be looked at."""
    first, second = simulate(3), simulate(3)

    assert (first.loop.time(), first.table.rows) == (second.loop.time(), second.table.rows)
    assert first.draws.getstate() == second.draws.getstate()


@pytest.mark.parametrize("design", WRONG_DESIGNS)
def test_simulation_notices_when_a_design_is_wrong(design: str) -> None:
    """Each rule that is left out shows with the seed that the design names, or soon after it.

    A change of what a simulation draws moves the seed: write the new one, which is printed, into the design.
    """
    wrong = WRONG_DESIGNS[design]
    seeds = range(wrong.seed, wrong.seed + SEEDS_UNTIL_FOUND)
    found = next((seed for seed in seeds if is_noticed(seed, wrong)), None)
    assert found is not None, f"no violation with the seeds {seeds}"
    if found != wrong.seed:
        print(f"the design names seed {wrong.seed}, and seed {found} shows it")  # noqa: T201


def is_noticed(seed: int, wrong: WrongDesign) -> bool:
    """Tell whether the simulation of *seed* breaks a rule."""
    try:
        simulate(seed, weather=wrong.weather, make_fleet=wrong.make_fleet, twist=wrong.twist)
    except ViolationError:
        return True
    return False
