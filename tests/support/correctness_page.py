"""Write the figures of docs/correctness.md from what the runs assert or have written down.

python -m support.correctness_page
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from model import test_models, test_ownership, test_put_back, test_transfers
from simulation.campaign import CAMPAIGNS, FLOOR
from simulation.left_out_rules import BY_DESIGN
from simulation.noticing import histories_of, histories_until_noticed
from simulation.test_simulation import KCL_SEEDS
from support.campaigns import read_campaigns
from support.requires import ROOT

MODELS = (test_models, test_ownership, test_transfers, test_put_back)
SAFE = {name: found for one in MODELS for name, found in (one.SAFE | one.SAFE_AND_LARGE).items()}
WRONG = [name for one in MODELS for name in one.WRONG]
REAL_CAMPAIGNS = ROOT / "tests" / "faults" / "campaigns.json"
PAGE = ROOT / "docs" / "correctness.md"
REGION = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SUBJECTS = {
    "home": "the home of a tenant while a static map changes",
    "letters": "dead letters of a tenant that is not registered",
    "lease": "one lease, its hand-over, and a leader of the KCL 3.x",
    "group": "batches of several stream shards in one transaction",
    "failover": "stream positions on a shard that loses commits, with parents, children and grandparents",
    "gap": "a shard that goes back by more than the stream keeps",
    "log order": "following the logs of two shards: running transactions, stale standbys, moves",
    "feed": "the feed of two shards: killed publishers, moves, stale standbys",
    "ownership": "exclusive owners of tenants within a reader",
    "move": "a tenant that moves, with two movers, rollbacks and cleanups",
    "move and failover": "a tenant that moves between shards that lose commits",
    "restore": "a tenant that is put back to a backup, with two restorers, on a shard that loses commits",
    "import": "a tenant whose source changes while it is copied and followed, on a shard that loses commits",
    "adopt": "a table of another program, which changes while it is copied, on a shard that loses commits",
    "erase": "a person's rows and results that are erased beside batches, movers and failovers",
    "put back": "messages of a FIFO group that return to their queue, on two shards that lose commits",
}


def models() -> str:
    states, wrong, in_code = Counter[str](), Counter(map(_subject, WRONG)), Counter(map(_subject, BY_DESIGN))
    for name, (_, state_count) in SAFE.items():
        states[_subject(name)] += state_count
    taken: defaultdict[str, list[int]] = defaultdict(list)
    for rule, design in BY_DESIGN.items():
        if (count := histories_until_noticed(design)) is not None:
            taken[_subject(rule)].append(count)
    rows = [(text, states[name], wrong[name], _of(taken[name], in_code[name])) for name, text in SUBJECTS.items()]
    counts = [count for one in taken.values() for count in one]
    rows.append(("all", states.total(), wrong.total(), _of(counts, in_code.total())))
    head = ("model", "states", "left-out rules that break a promise", "left out in code: noticed")
    unnoticed = [one for one in {*BY_DESIGN.values()} if histories_until_noticed(one) is None]
    tried = [histories_of(one) for one in unnoticed]
    return _table(head, rows) + (
        f"\nThe {len(tried)} designs that were not noticed had"
        f" from {min(tried):,} to {max(tried):,} histories so far.\n"
        if tried
        else ""
    )


def simulation() -> str:
    campaigns = read_campaigns(CAMPAIGNS)
    felt_in = Counter[tuple[str, str]]()
    for weather, by_kind in (item for one in campaigns for item in one["faults"].items()):
        for kind, (_, felt_count) in by_kind.items():
            felt_in[weather, kind] += felt_count
    kind_count = len({kind for _, kind in felt_in})
    hours = sum(one["processorSeconds"] for one in campaigns) / 3600
    count = sum(sum(one["histories"].values()) for one in campaigns)
    return (
        f"Each CI run has at least {sum(FLOOR.values())} histories in {len(FLOOR)} kinds of weather, and {KCL_SEEDS}"
        " with a leader of the KCL 3.x. Campaigns (`python -m simulation.campaign`) had"
        f" {count:,} histories, none of which broke a rule, in {hours:.1f} hours of processor time;"
        f" `tests/simulation/campaigns.json` has commits and seeds. Each of {kind_count} kinds of faults changed the"
        f" course of histories, {min(felt_in.values()):,} times at least in each weather that has it.\n"
    )


def faults() -> str:
    """Return the table of histories of real processes; empty before the first campaign."""
    campaigns = read_campaigns(REAL_CAMPAIGNS)
    if not campaigns:
        return ""
    columns = ("histories", "operations", "moves", "promotions", "operationsLostByPromotions")
    histories, operations, *others = (sum(one[column] for one in campaigns) for column in columns)
    kinds = {kind for one in campaigns for kind, (begun, _) in one["nemeses"].items() if begun}
    begun, struck = (sum(counts[at] for one in campaigns for counts in one["nemeses"].values()) for at in (0, 1))
    counted = ("histories", "operations", "kinds of faults", "faults", "that hit something")
    head = (*counted, "moves", "fail-overs", "operations that these lost")
    return _table(head, [(histories, operations, len(kinds), begun, struck, *others)])


def _of(found: Sequence[int], count: int) -> str:
    return f"{len(found)} of {count}" if count else ""


def _subject(name: str) -> str:
    return name.partition(":")[0]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str | int, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(one if isinstance(one, str) else f'{one:,}' for one in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


FIGURES = {"models": models, "simulation": simulation, "faults": faults}


def render(page: str) -> str:
    return REGION.sub(lambda region: region[1] + FIGURES[region[2]]() + region[3], page)


def main() -> None:
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
