"""`tenants usage`: what the tenants of all shards used, a period at a time."""

from __future__ import annotations

import csv
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands import EXIT_DONE, EXIT_FAILED
from simplu_worker.commands.output import Answer, describe_silent, first_rows, print_note
from simplu_worker.config.settings import Settings
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards

COLUMNS: Final = (
    *("startsAt", "businessId", "locationId", "resourceType"),
    *("operations", "bytes", "milliseconds", "storedRows", "storedBytes"),
)
KEY_COUNT: Final = 4  # of the columns


class UsageRequest(msgspec.Struct, frozen=True):
    """The time, the length of its periods, and the business, or all."""

    begin: datetime
    end: datetime
    by: Literal["hour", "day", "month"] = "day"
    business_id: str | None = None

    def parts(self) -> Iterator[tuple[datetime, datetime]]:
        """Yield the time in parts of a period each, of a day where periods are hours: so much is in memory at once."""
        begin = self.begin.astimezone(UTC)
        while begin < self.end:
            first = begin.replace(hour=0, minute=0, second=0, microsecond=0)
            behind = first + timedelta(days=1)
            if self.by == "month":
                behind = (first.replace(day=1) + timedelta(days=32)).replace(day=1)
            yield begin, min(behind, self.end)
            begin = behind


async def show_usage(settings: Settings, request: UsageRequest, *, as_csv: bool = False) -> Answer | int:
    """Return what tenants used, or print it as CSV, as it comes."""
    silent: set[str] = set()
    async with open_shards(settings) as shards:
        rows = _read(shards, request, silent)
        if not as_csv:
            found = [row async for row in rows]
            members = [dict(zip(COLUMNS, row, strict=True)) for row in found]
            return Answer({"usage": members}, first_rows(COLUMNS, found), sorted(silent))
        out = csv.writer(sys.stdout)
        out.writerow(COLUMNS)
        async for starts_at, *rest in rows:
            out.writerow([starts_at.isoformat(), *rest])
    if silent:
        print_note(describe_silent(sorted(silent)))
    return EXIT_FAILED if silent else EXIT_DONE


async def _read(shards: Shards, request: UsageRequest, silent: set[str]) -> AsyncIterator[list[Any]]:
    """Yield rows as COLUMNS; the shards without an answer are added to *silent*."""
    for begin, end in request.parts():
        arguments = begin, end, request.by, request.business_id
        answers = await fetch_from_all_shards(shards.locator, shards.pools, QUERIES["read_usage"], *arguments)
        silent.update(answers.silent_shard_ids)
        for row in sum_shards(list(row.values()) for _, row in answers.rows):
            yield row


def sum_shards(rows: Iterable[list[Any]]) -> list[list[Any]]:
    """Return rows as COLUMNS, in order, of the rows of all shards, which have the shard that counted after the key.

    A copy of what another shard counted has the same, or less.
    """
    counts: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        key, own = tuple(row[: KEY_COUNT + 1]), row[KEY_COUNT + 1 :]
        counts[key] = list(map(_larger, counts.get(key, own), own))
    summed: dict[tuple[Any, ...], list[Any]] = {}
    for key, own in counts.items():
        known = summed.setdefault(key[:KEY_COUNT], [0, 0, 0.0, None, None])
        known[:3] = [one + other for one, other in zip(known[:3], own[:3], strict=True)]
        known[3:] = map(_larger, known[3:], own[3:])
    return [[*key, *own[:2], round(own[2], 3), *own[3:]] for key, own in sorted(summed.items())]


def _larger(one: Any, other: Any) -> Any:
    return other if one is None else one if other is None else max(one, other)
