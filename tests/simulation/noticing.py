"""Count how many histories each wrong design takes until the simulation notices it, and write that to `noticed.json`.

    python -m simulation.noticing --seconds 3000

Another call goes on there; `--again` begins anew, `--all-weathers` takes not only the weather that a design names,
`--only TEXT` the designs with that text in their names.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from simulation.campaign import current_commit
from simulation.queue_histories import WRONG_ABOUT_QUEUES, are_queues_wrong
from simulation.simulated_world import ViolationError, Weather
from simulation.simulation import simulate
from simulation.virtual_time import QuietError
from simulation.wrong_designs import MORE_WRONG_DESIGNS, WRONG_ABOUT_GAPS, WRONG_DESIGNS
from simulation.wrong_whole import MORE_WRONG_IN_WHOLE, WRONG_IN_WHOLE

SEEDED = {**WRONG_IN_WHOLE, **WRONG_DESIGNS}  # CI runs them
FURTHER = {**MORE_WRONG_IN_WHOLE, **MORE_WRONG_DESIGNS}
DESIGNS = {**FURTHER, **SEEDED}
NOTICED = Path(__file__).with_name("noticed.json")
QUEUES = "queues"
HISTORIES = 5000
ROUNDS = (5, 20, 100, 500, HISTORIES)  # histories that all designs get before any gets more
JOB_S = 60.0  # of processor time, after which a design waits for its next turn
HISTORY_S = 60.0  # a history that takes longer goes round in a circle

_endless: list[bool] = []  # in this process: whether the history has taken too long

Counts = dict[str, dict[str, dict[str, Any]]]  # by design and weather


def own_weather(design: str) -> str:
    return QUEUES if design in WRONG_ABOUT_QUEUES else DESIGNS[design].weather.value


def is_noticed(design: str, weather: str, seed: int) -> bool:
    signal.signal(signal.SIGVTALRM, _give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, HISTORY_S)
    _endless.clear()
    try:
        if weather == QUEUES:
            return are_queues_wrong(seed, WRONG_ABOUT_QUEUES[design])
        wrong = DESIGNS[design]
        simulate(seed, weather=Weather(weather), make_fleet=wrong.make_fleet, twist=wrong.twist)
    except (ViolationError, QuietError):
        return True
    except KeyboardInterrupt:
        if not _endless:
            raise
        return True
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return False


def run_job(job: tuple[str, str, int, int]) -> tuple[str, str, int, bool]:
    """Simulate a design in a weather from one seed to another; return how many there were in all, and the outcome."""
    design, weather, first, last = job
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    ends_at = time.process_time() + JOB_S
    for seed in range(first, last + 1):
        if is_noticed(design, weather, seed):
            return design, weather, seed, True
        if time.process_time() > ends_at:
            return design, weather, seed, False
    return design, weather, last, False


def jobs(counts: Counts, designs: list[str], most: int, *, in_all: bool) -> Iterator[list[tuple[str, str, int, int]]]:
    """Return rounds of jobs, by what *counts* has when a round begins; each design has one in a round.

    First those that name no seed: of the others a bound is known.
    """
    own = [(design, own_weather(design)) for design in designs if design not in SEEDED]
    seeded = [(design, own_weather(design)) for design in designs if design in SEEDED]
    others = [
        (design, weather.value)
        for design in designs
        for weather in Weather
        if own_weather(design) not in (weather.value, QUEUES)
    ]
    for places in (own, seeded, others) if in_all else (own, seeded):
        for bound in [one for one in ROUNDS if one < most] + [most]:
            while found := [
                (design, weather, known["histories"] + 1, bound)
                for design, weather in places
                if not (known := count_of(counts, design, weather))["isNoticed"] and known["histories"] < bound
            ]:
                yield found


def count_of(counts: Counts, design: str, weather: str) -> dict[str, Any]:
    """Return how many histories a design has had in a weather, and whether the last one noticed it."""
    return counts.get(design, {}).get(weather, {"histories": 0, "isNoticed": False})


def read_counts() -> Counts:
    known: Counts = json.loads(NOTICED.read_text(encoding="utf-8")) if NOTICED.exists() else {}
    return {design: one for design, one in known.items() if design in DESIGNS or design in WRONG_ABOUT_QUEUES}


def histories_until_noticed(design: str) -> int | None:
    """Return how many histories a design took at most, in its best weather; None where none has noticed it.

    What is about gaps has one history, which a test plays. Where a design names a seed, CI shows that bound, from 0 on.
    """
    if design in WRONG_ABOUT_GAPS:
        return 1
    counts = [one["histories"] for one in read_counts().get(design, {}).values() if one["isNoticed"]]
    if design in SEEDED:
        counts.append(SEEDED[design].seed + 1)
    return min(counts, default=None)


def histories_of(design: str) -> int:
    return sum(one["histories"] for one in read_counts().get(design, {}).values())


def seed_of(design: str) -> tuple[Weather, int] | None:
    found = [(one["histories"], weather) for weather, one in read_counts().get(design, {}).items() if one["isNoticed"]]
    return (Weather(min(found)[1]), min(found)[0]) if found else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=HISTORIES, help=f"at most, of a design ({HISTORIES})")
    parser.add_argument("--seconds", type=float, default=600.0, help="after which no job begins (600)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--all-weathers", action="store_true")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    designs = [one for one in (*WRONG_ABOUT_QUEUES, *DESIGNS) if given.only in one]
    counts = {design: one for design, one in read_counts().items() if not (given.again and design in designs)}
    commit = current_commit()
    ends_at = time.monotonic() + given.seconds
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for round_of_jobs in jobs(counts, designs, given.histories, in_all=given.all_weathers):
            for design, weather, count, is_found in pool.imap_unordered(run_job, round_of_jobs):
                known = {"histories": count, "isNoticed": is_found, "commit": commit}
                counts.setdefault(design, {})[weather] = known
                NOTICED.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                print(f"{count:5} {'noticed' if is_found else '      -'} {weather}: {design}", flush=True)  # noqa: T201 - a command
                if time.monotonic() > ends_at:
                    return 0
    return 0


def _give_up(_number: int, _frame: FrameType | None) -> None:
    _endless.append(True)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
