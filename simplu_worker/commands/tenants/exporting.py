"""`tenants export`: follow the shards into another database, compare it, or tell how far it is behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import Answer, Line, Part, Table, first_rows, print_note
from simplu_worker.commands.running import given_address, require_settings
from simplu_worker.commands.tenants.importing import read_file
from simplu_worker.config.settings import Settings
from simplu_worker.transfers.exporting.exporter import Exporter, ExportShards
from simplu_worker.transfers.exporting.target import TargetDatabase
from simplu_worker.transfers.importing.queries import parse_mapping

TARGET: Final = "EXPORT_TARGET_URL"
PAUSE_S: Final = 2.0  # until a change that is on its way has come


@contextlib.asynccontextmanager
async def _open(settings: Settings, path: Path) -> AsyncIterator[Exporter]:
    require_settings(settings, routes=True)
    mapping, address = parse_mapping(read_file(path)), given_address(settings, TARGET, "the database to export to")
    async with open_shards(settings) as shards:
        access = ExportShards(shards.locator, shards.pools, shards.commits)
        yield Exporter(TargetDatabase(address, mapping, str(uuid4())), access, print_note)


async def follow_shards(settings: Settings, path: Path) -> Answer:
    """Follow until a signal, or until the target refuses a statement."""
    async with _open(settings, path) as exporter:
        await exporter.follow()
    raise AssertionError("an export follows until it is ended")


async def verify_target(settings: Settings, path: Path) -> Answer:
    """Compare all rows; it fails if one differs for longer than a change takes."""
    async with _open(settings, path) as exporter:
        found, others = await exporter.verify(partial(asyncio.sleep, PAUSE_S))
    columns = ("tenant", "shard", "rows", "in the target", "checksum", "in the target", "differing", "such as")
    rows = [
        (
            f"{one.business_id} {one.location_id}",
            one.shard_id,
            one.rows,
            one.target_rows,
            one.checksum,
            one.target_checksum,
            one.differing,
            "; ".join(one.names[:3]),
        )
        for one in sorted(found, key=lambda one: -one.differing)
    ]
    left: dict[str, int] = {}
    for one in found:
        for name, count in one.not_exported.items():
            left[name] = left.get(name, 0) + count
    differing = sum(one.differing for one in found)
    parts: list[Part] = [*first_rows(columns, rows), Line(f"{len(found)} tenants, {differing} rows differ")]
    if left:
        counted = ", ".join(f"{name} ({count})" for name, count in sorted(left.items()))
        parts.append(Line(f"of types that the mapping does not have, and that are not exported: {counted}"))
    if others:
        parts.append(Line(f"in the target alone are {len(others)} tenants, such as {', '.join(others[:5])}"))
    members = {"tenants": found, "differing": differing, "notExported": left, "inTargetAlone": others}
    return Answer(members, parts, is_failed=differing > 0)


async def show_lag(settings: Settings, path: Path) -> Answer:
    """Return how far each shard is behind."""
    async with _open(settings, path) as exporter:
        lags = await exporter.read_lag()
    rows = [
        (one.shard_id, "all is compared first" if one.changes is None else one.changes, f"{one.seconds or 0.0:.1f} s")
        for one in lags
    ]
    return Answer({"shards": lags}, [Table(("shard", "changes to write", "oldest"), rows)])
