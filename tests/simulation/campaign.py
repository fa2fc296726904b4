"""Simulate histories for a given time, and write down how many there were.

    python -m simulation.campaign --seconds 3600

On all processors; each draws the seeds of its own range, from a number that is new for each campaign. The first history
that breaks a rule ends it with exit status 1 and the command that shows the history again. A campaign that ends well is
added to `campaigns.json`, for docs/correctness.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import secrets
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import structlog
from simulation.simulated_world import ViolationError, Weather
from simulation.simulation import simulate

CAMPAIGNS = Path(__file__).with_name("campaigns.json")
RANGE = 1_000_000  # seeds of a process
VARIABLES = {
    Weather.FAIR: "SIMULATION_SEED",
    Weather.STORM: "SIMULATION_STORM_SEED",
    Weather.GREAT_STORM: "SIMULATION_GREAT_STORM_SEED",
    Weather.DEFECTS: "SIMULATION_DEFECTS_SEED",
    Weather.MOVES: "SIMULATION_MOVES_SEED",
    Weather.WHOLE: "SIMULATION_WHOLE_SEED",
}


def run_lane(first_seed: int, seconds: float) -> tuple[Counter[str], float, str]:
    """Simulate a history of each weather in turn; return the counts, the processor seconds, and what broke a rule."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    counts: Counter[str] = Counter()
    while time.process_time() < seconds:
        for weather in Weather:
            seed = first_seed + counts[weather.value]
            try:
                simulate(seed, weather=weather)
            except ViolationError as exc:
                text = f"{exc}\n{VARIABLES[weather]}={seed} pytest tests/simulation/test_simulation.py"
                return counts, time.process_time(), text
            counts[weather.value] += 1
    return counts, time.process_time(), ""


def main() -> int:
    """Run a campaign; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="processor time of each process (600)")
    seconds = parser.parse_args().seconds
    lanes = os.cpu_count() or 1
    start = secrets.randbelow(10**6) * lanes * RANGE
    with multiprocessing.get_context("spawn").Pool(lanes, maxtasksperchild=1) as pool:
        results = pool.starmap(run_lane, [(start + lane * RANGE, seconds) for lane in range(lanes)])
    counts = sum((one[0] for one in results), Counter[str]())
    if broken := [text for _, _, text in results if text]:
        print("\n".join(broken))  # noqa: T201 - a command
        return 1
    campaigns = json.loads(CAMPAIGNS.read_text(encoding="utf-8"))
    day = datetime.now(UTC).date().isoformat()
    spent_s = round(sum(one[1] for one in results))
    campaigns.append({"day": day, "firstSeed": start, "processorSeconds": spent_s, "histories": dict(counts)})
    CAMPAIGNS.write_text(json.dumps(campaigns, indent=1) + "\n", encoding="utf-8")
    print(f"{counts.total()} histories in {spent_s} s of processor time, no rule broken: {dict(counts)}")  # noqa: T201 - a command
    return 0


if __name__ == "__main__":
    sys.exit(main())
