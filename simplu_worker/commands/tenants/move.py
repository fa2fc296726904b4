"""`tenants move`: move tenants to other shards while workers apply their operations."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from simplu_worker.assembly import Shards, open_shards
from simplu_worker.commands.command_line import UsageError
from simplu_worker.commands.moves.runner import MoveRequest, MoveRunner
from simplu_worker.commands.moves.terms import MoveTerms
from simplu_worker.commands.output.display import print_json, print_note, print_table
from simplu_worker.commands.requirements import require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.shards.moving.planning.places import find_places
from simplu_worker.shards.moving.planning.readiness import MovePlan, check_shards, plan_move
from simplu_worker.shards.moving.types import Move


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
            return await _print_plan(shards, requests, as_json=as_json)
        runner = MoveRunner(settings, shards, terms, as_json=as_json)
        return await runner.run(requests)


async def _print_plan(shards: Shards, requests: Sequence[MoveRequest], *, as_json: bool) -> int:
    plans: list[MovePlan] = []
    problems: dict[str, str] = {}
    for request in requests:
        try:
            places = await find_places(shards.locator, shards.pools, request.tenant_id)
            source_id = places.source_for(request.shard_id)
            await check_shards(shards.locator, shards.pools, source_id, request.shard_id)
            plans.append(await plan_move(shards.pools, Move(request.tenant_id, source_id, request.shard_id)))
        except WorkerError as exc:
            problems[request.tenant_id] = str(exc)
    if as_json:
        print_json({"plan": plans, "refused": problems})
        return 1 if problems else 0
    print_table(
        ("tenant", "from", "to", "resources", "MiB", "operations", "about s", "pause, about ms"),
        (
            (
                one.tenant,
                one.source_shard,
                one.target_shard,
                one.resources,
                f"{one.byte_count / 2**20:.1f}",
                one.operations,
                f"{one.duration_s:.1f}",
                f"{one.pause_s * 1000:.0f}",
            )
            for one in plans
        ),
    )
    for tenant_id, problem in problems.items():
        print_note(f"{tenant_id}: {problem}")
    print_note("nothing was moved; without --dry-run the tenants are")
    return 1 if problems else 0
