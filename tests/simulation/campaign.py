"""Simulate histories for a given time, and write down how many there were.

    python -m simulation.campaign --seconds 3600

The first history that breaks a rule ends it with exit status 1 and the command that shows the history again. A campaign
that ends well is added to `campaigns.json`, for docs/correctness.md.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog
from simulation.simulated_faults import Fault, FaultCounts
from simulation.simulated_world import Weather
from simulation.simulation import simulate
from support.campaigns import add_campaign

CAMPAIGNS = Path(__file__).with_name("campaigns.json")
RANGE = 1_000_000  # seeds of a process
OF_DEFECTS = (Fault.FOREIGN, Fault.DEFECT)
OF_MOVES = (Fault.MOVED, Fault.FAILOVER, Fault.STALE_SCAN, Fault.FALSE_END, Fault.PAUSED)  # the rest comes seldom
OF_FEEDS = (Fault.KILLED, *OF_MOVES)
OF_RESHARDS = (Fault.SPLIT, Fault.MERGED, Fault.KILLED, *OF_MOVES[1:])
VARIABLES = {
    Weather.FAIR: "SIMULATION_SEED",
    Weather.STORM: "SIMULATION_STORM_SEED",
    Weather.GREAT_STORM: "SIMULATION_GREAT_STORM_SEED",
    Weather.DEFECTS: "SIMULATION_DEFECTS_SEED",
    Weather.MOVES: "SIMULATION_MOVES_SEED",
    Weather.RESHARDS: "SIMULATION_RESHARDS_SEED",
    Weather.FEEDS: "SIMULATION_FEEDS_SEED",
    Weather.WHOLE: "SIMULATION_WHOLE_SEED",
}
FLOOR = {  # histories in each CI run, at least
    Weather.FAIR: 30,
    Weather.STORM: 15,
    Weather.GREAT_STORM: 2,
    Weather.DEFECTS: 12,
    Weather.MOVES: 10,
    Weather.RESHARDS: 10,
    Weather.FEEDS: 10,
    Weather.WHOLE: 6,
}


class LaneResult(NamedTuple):
    """What a process has simulated, with the faults by weather; *broken* is what broke a rule, empty without."""

    histories: Counter[str]
    faults: dict[str, FaultCounts]
    spent_s: float
    broken: str = ""


def run_lane(first_seed: int, seconds: float) -> LaneResult:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    counts: Counter[str] = Counter()
    faults = {weather.value: FaultCounts() for weather in Weather}
    while time.process_time() < seconds:
        for weather in (weather for weather, count in FLOOR.items() for _ in range(count)):
            seed = first_seed + counts[weather.value]
            try:
                world = simulate(seed, weather=weather)
            except Exception as exc:  # noqa: BLE001 - an error of the product or of the simulation, too
                text = f"{exc!r}\n{VARIABLES[weather]}={seed} pytest tests/simulation/test_simulation.py"
                return LaneResult(counts, faults, time.process_time(), text)
            counts[weather.value] += 1
            faults[weather.value].add(world.network.faults)
    return LaneResult(counts, faults, time.process_time())


def expected_faults(weather: str) -> list[Fault]:
    narrow = {Weather.MOVES: OF_MOVES, Weather.RESHARDS: OF_RESHARDS, Weather.FEEDS: OF_FEEDS}
    if weather in narrow:
        return list(narrow[Weather(weather)])
    return [one for one in Fault if one not in OF_DEFECTS or weather == Weather.DEFECTS]


def current_commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="processor time of each process (600)")
    seconds = parser.parse_args().seconds
    lanes = os.cpu_count() or 1
    start = secrets.randbelow(10**6) * lanes * RANGE
    results = []
    with multiprocessing.get_context("spawn").Pool(lanes, maxtasksperchild=1) as pool:
        first_seeds = [start + lane * RANGE for lane in range(lanes)]
        for result in pool.imap_unordered(partial(run_lane, seconds=seconds), first_seeds):
            if result.broken:
                print(result.broken)  # noqa: T201 - a command
                return 1
            results.append(result)
    counts = sum((one.histories for one in results), Counter[str]())
    spent_s = round(sum(one.spent_s for one in results))
    faults: dict[str, dict[str, list[int]]] = {}
    for weather in counts:
        total = FaultCounts()
        for one in results:
            total.add(one.faults[weather])
        faults[weather] = {fault.value: [total.fired[fault], total.felt[fault]] for fault in expected_faults(weather)}
    facts = {"commit": current_commit(), "firstSeed": start, "processorSeconds": spent_s}
    add_campaign(CAMPAIGNS, facts | {"histories": dict(counts), "faults": faults})
    print(f"{counts.total()} histories in {spent_s} s of processor time, no rule broken: {dict(counts)}")  # noqa: T201 - a command
    for weather, by_fault in faults.items():
        never = [fault for fault, (_, felt) in by_fault.items() if not felt]
        print(f"{weather}: never noticed: {', '.join(never) or 'nothing'}")  # noqa: T201 - a command
    return 0


if __name__ == "__main__":
    sys.exit(main())
