"""`tenants move`: move tenants to other shards while workers apply their operations."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.command_line import UsageError
from simplu_worker.commands.moves.plans import plan_moves, print_plans
from simplu_worker.commands.moves.runner import MoveRequest, MoveRunner
from simplu_worker.commands.moves.terms import MoveTerms
from simplu_worker.commands.requirements import require_settings
from simplu_worker.config.settings import Settings


def read_requests(path: Path) -> list[MoveRequest]:
    """Return the requests of a file with a line `business,location,shard` for each tenant. Raises UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"--from-file: expected a readable file of UTF-8 at {path}, got: {exc}") from None
    requests = []
    for number, row in enumerate(csv.reader(lines), 1):
        if not row or row[0].startswith("#"):
            continue
        if len(row) != 3 or not all(part.strip() for part in row):
            raise UsageError(f"--from-file: expected business,location,shard in line {number}, got {','.join(row)!r}")
        requests.append(MoveRequest(*(part.strip() for part in row)))
    ids = [one.tenant_id for one in requests]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise UsageError(f"--from-file: expected each tenant once, got {twice[0]} twice")
    return requests


async def move_tenants(
    settings: Settings, requests: Sequence[MoveRequest], terms: MoveTerms, *, dry_run: bool, as_json: bool
) -> int:
    """Move tenants, some at a time; print a certificate of each. Return 1 if one was not moved, or its rows differ."""
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        if dry_run:
            plans, problems = await plan_moves(shards, requests)
            return print_plans(plans, problems, as_json=as_json)
        runner = MoveRunner(settings, shards, terms, as_json=as_json)
        return await runner.run(requests)
