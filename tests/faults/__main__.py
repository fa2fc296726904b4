"""Have real workers, servers and movers go through faults, one history after the other, and judge each.

    python -m faults [--seed 1] [--minutes 5] [--operations 2000]

A world is two workers with a feed, two Postgres shards with standbys, AWS, Citrus and a receiver. It is there for a few
histories, one after the other, each with tenants of its own; after a violation comes a new world. While operations and
order events come, nemeses (`nemeses.py`) strike alone, in pairs and in mixtures, by a plan that the seed gives. Then
all faults end, and what the shards and the receiver have, and what the HTTP API has answered meanwhile, is judged
(`judge.py`). The history is kept as JSON lines, the last one with the verdict, and with a violation the logs of the
workers beside it. Exit status 0 only without violations. The next history has the next seed, until the minutes are
over. `campaign.py` counts the histories of a folder.

`--nemeses` names those that strike. `--planted` has the workers break a promise (`planted/`), which must be found: then
exit status 0 only with a violation. `--judge` judges a history that was kept.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import asyncpg
from faults.history import History
from faults.judge import Promise, Violation, is_of_an_end_before_its_time, judge, read_history
from faults.load import Load
from faults.nemeses import NEMESES, OFTEN, WITH_CLOCKS, plan, run_episode
from faults.world import World
from rich.console import Console
from support.load.console import open_console

from simplu_local.processes.loopback import StackError
from simplu_local.processes.worker_process import WorkerEndedError

KEPT: Final = Path(".faults")
SETTLED_S: Final = 2.0
ERRORS: Final = (WorkerEndedError, StackError, OSError, asyncpg.PostgresError, SystemExit)
WORLD_TRIES: Final = 3
UNMENDED: Final = frozenset({Promise.ANSWERS, Promise.FORESEEN})  # what stays broken, however long one waits
JUDGED_EVERY_S: Final = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no history after that")
    parser.add_argument("--operations", type=int, default=2000)
    parser.add_argument("--of-a-world", type=int, default=5, metavar="COUNT", help="histories in the same processes")
    parser.add_argument("--rate", type=float, default=50.0, help="operations/s")
    parser.add_argument("--nemeses", help=f"comma-separated: {', '.join(WITH_CLOCKS)}")
    parser.add_argument("--within", type=float, default=120.0, help="seconds until everything must be applied")
    parser.add_argument("--planted", help="a bug of planted/sitecustomize.py")
    parser.add_argument("--keep", type=Path, default=KEPT, help="folder for the histories")
    parser.add_argument("--judge", type=Path, help="judge this history again, and run none")
    arguments = parser.parse_args()
    console = open_console(piped_width=160)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # of servers whose clients are cut off
    if arguments.judge is not None:
        violations = judge(read_history(arguments.judge.read_text()))
        print_violations(console, violations)
        sys.exit(1 if violations else 0)
    sys.exit(asyncio.run(run(arguments, console)))


async def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run histories until the time is over; return the exit status."""
    arguments.keep.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + arguments.minutes * 60
    judged: dict[int, Sequence[Violation]] = {}
    is_found, worlds_failed = False, 0
    while not judged or not (is_found or time.monotonic() >= until):
        more = await run_world(arguments, console, arguments.seed + len(judged), lambda: time.monotonic() >= until)
        judged |= more
        worlds_failed = 0 if more else worlds_failed + 1
        if worlds_failed == WORLD_TRIES:
            return 1
        found = {one.promise for violations in judged.values() for one in violations}
        is_found = arguments.planted is not None and bool(found - {Promise.END, Promise.FORESEEN})
    wrong = [seed for seed, violations in judged.items() if violations]
    seeds = f": seeds {wrong}" if wrong else ""
    console.print(f"{len(judged)} histories, of which {len(wrong)} break a promise{seeds}")
    return int(bool(wrong) if arguments.planted is None else not is_found)


async def run_world(
    arguments: argparse.Namespace, console: Console, first: int, is_over: Callable[[], bool]
) -> dict[int, Sequence[Violation]]:
    """Run histories from the seed *first* on in one world, until one breaks a promise; return what each breaks.

    Without any, the world did not start, which tells of the machine.
    """
    judged: dict[int, Sequence[Violation]] = {}
    try:
        async with World(random.Random(first), planted=arguments.planted) as world:
            for seed in range(first, first + arguments.of_a_world):
                judged[seed] = await run_history(world, arguments, console, seed)
                if judged[seed] or is_over():
                    break
    except* ERRORS as errors:
        found = violations_of(errors)
        console.print(f"the world of seed {first} does not {'end' if judged else 'start'}")
        print_violations(console, found)
        if judged:
            last = max(judged)
            judged[last] = [*judged[last], *found]
    return judged


async def run_history(world: World, arguments: argparse.Namespace, console: Console, seed: int) -> Sequence[Violation]:
    begun_at = time.monotonic()
    history = History(arguments.keep / f"{seed}.jsonl")
    history.note("phase", name="begins")
    ending: list[dict[str, Any]] = []
    violations: list[Violation] = []
    try:
        await world.begin(history, random.Random(seed), f"h{seed}")
        history.note("phase", name="begun")
        await disturb(world, arguments, seed)
        violations, ending = await judge_end(world, arguments.within)
        history.note("phase", name="settled")
    except* ERRORS as errors:
        violations = violations_of(errors)
    if violations:
        for worker in world.workers:
            shutil.copy(worker.log_path, arguments.keep / f"{seed}-{worker.log_path.name}")
    seconds = time.monotonic() - begun_at
    verdict = {"what": "verdict", "seconds": round(seconds, 1), "violations": [list(one) for one in violations]}
    history.close([*ending, verdict])
    console.print(describe(seed, history.lines, ending, seconds))
    print_violations(console, violations)
    return violations


async def disturb(world: World, arguments: argparse.Namespace, seed: int) -> None:
    everything = WITH_CLOCKS if world.is_clock_stepped else NEMESES
    names = arguments.nemeses.split(",") if arguments.nemeses else [*everything, *OFTEN]
    next_episode = plan(random.Random(seed), names)
    tenants = world.testbed.tenants_of()
    load = Load(
        world.stack,
        tenants,
        random.Random(seed),
        name=str(seed),
        count=arguments.operations,
        rate=arguments.rate,
        note=world.history.note,
    )
    asking, sending = asyncio.create_task(world.ask()), asyncio.create_task(load.send())
    unseen = set(names) if arguments.nemeses else set()
    try:
        while not sending.done() or unseen:
            episode = next_episode()
            await run_episode(world, episode)
            unseen -= {name for name, _, _ in episode.parts}
        await sending
        world.history.note("phase", name="sent")
        await world.heal()
        world.history.note("phase", name="healed")
    finally:
        for task in (asking, sending):
            task.cancel()
        await asyncio.wait([asking, sending])
    if not asking.cancelled():
        asking.result()


async def judge_end(world: World, within_s: float) -> tuple[list[Violation], list[dict[str, Any]]]:
    """Return the violations once there are none, twice with a pause between, or the time is over."""
    deadline, is_second = time.monotonic() + within_s, False
    while True:
        ending = await world.ending()
        violations = judge([*world.history.lines, *ending])
        is_unmended = bool(violations) and {one.promise for one in violations} <= UNMENDED
        is_over = is_unmended or time.monotonic() > deadline
        if violations and is_over and (left := await world.left_in_sources()):
            late = Violation(Promise.END, f"after {within_s:g} s the sources still have {left}")
            return [late, *(one for one in violations if not is_of_an_end_before_its_time(one))], ending
        if is_over or (is_second and not violations):
            return violations, ending
        is_second = not violations
        await asyncio.sleep(SETTLED_S if is_second else JUDGED_EVERY_S)


def violations_of(errors: BaseException) -> list[Violation]:
    return [Violation(Promise.END, str(error)) for error in leaves(errors)]


def leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from leaves(one)
    else:
        yield error


def describe(seed: int, lines: Sequence[dict[str, Any]], ending: Sequence[dict[str, Any]], seconds: float) -> str:
    counts = Counter(line["what"] for line in (*lines, *ending))
    begun = Counter(line["name"] for line in lines if line["what"] == "nemesis" and line["phase"] == "begins")
    lost = sum(len(line["lost"]) for line in lines if line["what"] == "promoted")
    times = [line["at"] for line in lines if line["what"] == "phase"]
    parts = " + ".join(f"{until - since:.0f}" for since, until in itertools.pairwise(times))
    return (
        f"seed {seed}, {seconds:.0f} s ({parts}): {counts['put']} put, {begun.total()} nemeses,"
        f" {counts['moved']} moves, {counts['promoted']} promotions that lost {lost}, {counts['answer']} answers,"
        f" {counts['event']} events"
    )


def print_violations(console: Console, violations: Sequence[Violation]) -> None:
    for promise, text in violations:
        console.print(f"  {promise}: {text}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
