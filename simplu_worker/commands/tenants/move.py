"""`tenants move`: move tenants to other shards while workers apply their operations."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.moves.plans import plan_moves, print_plans
from simplu_worker.commands.moves.runner import MoveRequest, MoveRunner
from simplu_worker.commands.moves.terms import MoveTerms
from simplu_worker.commands.requirements import parse_tenant_id, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import UsageError
from simplu_worker.operations.operation import is_id

SHOWN_LENGTH: Final = 200  # of a line that is refused


def read_requests(path: Path) -> list[MoveRequest]:
    """Return the requests of a file with a line `business,location,shard` for each tenant. Raises UsageError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin a file with a byte order mark
            requests = [_parse_row(row, number) for number, row in enumerate(csv.reader(file), 1) if _is_request(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise UsageError(f"--from-file: expected a readable file of UTF-8 at {path}, got: {exc}") from None
    twice = sorted(one for one, count in Counter(one.tenant_id for one in requests).items() if count > 1)
    if twice:
        raise UsageError(f"--from-file: expected each tenant once, got {twice[0]} twice")
    if not requests:
        raise UsageError(f"--from-file: expected a line business,location,shard for each tenant in {path}, got none")
    return requests


def _is_request(row: Sequence[str]) -> bool:
    return bool(row) and not row[0].startswith("#")


def _parse_row(row: Sequence[str], number: int) -> MoveRequest:
    parts = [part.strip() for part in row]
    if len(parts) != 3 or not all(map(is_id, parts)):
        shown = ",".join(row)[:SHOWN_LENGTH]
        raise UsageError(f"--from-file: expected business,location,shard in line {number}, got {shown!r}")
    return MoveRequest(*parts)


async def move_tenants(
    settings: Settings, requests: Sequence[MoveRequest], terms: MoveTerms, *, apply: bool, as_json: bool
) -> int:
    """Print what moves of tenants would take; with *apply* move them, some at a time, and print a certificate of each.

    Return 1 if one is refused, or was not moved, or its rows differ.
    """
    require_settings(settings, routes=True)
    for one in requests:
        parse_tenant_id(one.business_id, one.location_id)
    async with open_shards(settings) as shards:
        if not apply:
            return print_plans(await plan_moves(shards, requests, max_pause_s=terms.max_pause), as_json=as_json)
        runner = MoveRunner(settings, shards, terms, as_json=as_json)
        return await runner.run(requests)
