"""Long random histories of exclusive ownership, with more operations, tenants and trouble than a search can visit."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from model.ownership import Rules
from model.ownership_model import Budget, OwnershipModel, State
from model.search import Violation

TROUBLE_STEPS_MAX = 150  # after these the trouble is over
STEPS_MAX = 3_000


def walk_all(seeds: Iterable[int], rules: Rules | None = None) -> None:
    for seed in seeds:
        walk(seed, rules)


def walk(seed: int, rules: Rules | None = None) -> None:
    """Go through one history until nothing is left to do.

    Raises Violation where a promise is broken, and where the history has no end.
    """
    draw = Random(seed)
    model = _drawn(draw, rules)
    state, trace = model.first(), list[str]()
    pace = draw.choice([0.05, 0.15, 0.4])  # of trouble
    for number in range(STEPS_MAX):
        may_be_troubled = number < TROUBLE_STEPS_MAX
        choices: list[tuple[str, State]] = []
        if may_be_troubled and draw.random() < pace:
            choices = list(model.faults(state))
        if not choices:
            choices = [one for one in model.steps(state) if one[1] != state]
        if not choices and may_be_troubled and draw.random() < 0.5:
            choices = [one for one in model.faults(state) if not one[0].startswith("zombie")]
        if not choices:
            if promise := model.unsettled(state):
                raise Violation(promise, trace)
            return
        label, state = draw.choice(choices)
        trace.append(label)
        if promise := model.broken(state):
            raise Violation(promise, trace)
    raise Violation(f"livelock: not at its end after {STEPS_MAX} steps", trace)


def _drawn(draw: Random, rules: Rules | None) -> OwnershipModel:
    tenants = "abc"[: draw.choice([2, 3])]
    operations = "".join(draw.choice(tenants) for _ in range(draw.randint(3, 8)))
    homes = "".join(draw.choice("AB.") if draw.random() < 0.7 else "A" for _ in tenants)
    budget = Budget(
        outages=draw.randint(0, 3),
        failovers=draw.randint(0, 3),
        moves=draw.randint(0, 2),
        crashes=draw.randint(0, 2),
        takes=draw.randint(0, 1),
        sheds=draw.randint(0, 4),
    )
    chosen = Rules(slots=draw.random() < 0.3) if rules is None else rules
    return OwnershipModel(operations, homes, budget, chosen, continues_ahead=draw.random() < 0.5)
