"""`tenants import`: plan to take over the tenants of another database, or do so."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

from simplu_worker.assembly.aws import open_business_info
from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.moves import wait_for_killed
from simplu_worker.commands.output import (
    TABLE_MAX,
    Answer,
    CountProgress,
    Line,
    Part,
    Table,
    first_rows,
    print_note,
    shorten,
)
from simplu_worker.commands.running import given_address, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import ConfigurationError
from simplu_worker.transfers.importing.copying import CopyCallbacks
from simplu_worker.transfers.importing.importer import (
    INTERVAL_S,
    FollowRound,
    Importer,
    ImportOptions,
    ImportResult,
    ImportShards,
    discard_tenants,
)
from simplu_worker.transfers.importing.queries import FILE_MAX_BYTES, parse_queries
from simplu_worker.transfers.importing.rules import TROUBLES, ImportState, RefusedRow, TenantReport
from simplu_worker.transfers.importing.source import ImportSource
from simplu_worker.vocabulary import TransferKind

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
BUSINESS_INFO_ATTEMPTS: Final = 3
CELL_MAX: Final = 100
WAIT: Final = partial(wait_for_killed, kind=TransferKind.IMPORT)
SOURCE: Final = "IMPORT_SOURCE_URL"
COLUMNS: Final = ("tenant", "type", "shard", "rows", "bytes", "refused", "state", "detail")
UNPLACED: Final = "(at --apply)"  # the shard of a tenant that the locator has not registered yet


async def import_tenants(
    settings: Settings, path: Path, options: ImportOptions, *, apply: bool, follow: bool
) -> Answer:
    """Return the plan of an import, or carry it out; it fails if a row or a tenant cannot be taken."""
    require_settings(settings, routes=True)
    refused, refused_count = list[RefusedRow](), 0

    def refuse(row: RefusedRow) -> None:
        nonlocal refused_count
        refused_count += 1
        refused.extend([row] if refused_count <= TABLE_MAX else ())

    queries, address = parse_queries(read_file(path)), given_address(settings, SOURCE, "the database to import")
    async with AsyncExitStack() as stack:
        progress = stack.enter_context(CountProgress("rows copied" if apply else "rows read", 0))
        callbacks = CopyCallbacks(refuse, progress.begin, progress.add, WAIT)
        shards = await stack.enter_async_context(open_shards(settings))
        business_info = None
        if options.business_type is None:
            opening = open_business_info(settings, attempts=BUSINESS_INFO_ATTEMPTS)
            business_info = await stack.enter_async_context(opening)
        access = ImportShards(shards.locator, shards.pools, business_info)
        importer = Importer(ImportSource(address), queries, access, options, callbacks)
        if follow:
            result = await _follow(importer)
        else:
            result = await (importer.apply() if apply else importer.plan())
    members = {
        "source": result.source.place,
        "snapshotAt": result.source.taken_at,
        "queries": result.queries,
        "counts": _counts(result.reports),
        "rows": sum(report.rows for report in result.reports),
        "tenants": result.reports,
        "refused": {"count": refused_count, "first": refused},
    }
    is_failed = bool(refused) or any(report.state in TROUBLES for report in result.reports)
    return Answer(members, _describe(result, refused, refused_count, is_plan=not apply), is_failed=is_failed)


async def discard_imports(settings: Settings, source: str | None, *, apply: bool) -> Answer:
    """Return the tenants of imports that are not active yet; with *apply* delete them. It fails if one is left."""
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        reports, silent = await discard_tenants(shards.locator, shards.pools, source, WAIT, apply=apply)
    rows = [(one.name, one.business_type, one.shard_id, one.rows, one.state, one.detail) for one in reports]
    counted = ", ".join(f"{count} {state}" for state, count in _counts(reports).items()) or "nothing to discard"
    parts = [
        Table(("tenant", "type", "shard", "rows deleted", "state", "detail"), rows) if rows else None,
        Line(counted),
        "nothing was deleted; with --apply these tenants are, with their rows" if rows and not apply else None,
    ]
    is_failed = any(report.state in TROUBLES for report in reports)
    return Answer({"applied": apply, "tenants": reports}, parts, silent, is_failed)


async def _follow(importer: Importer) -> ImportResult:
    """Follow until Ctrl-C or SIGTERM, of which one before the first round ends the command as ever."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def report(one: FollowRound) -> None:
        if not handled:
            for number in STOP_SIGNALS:
                loop.add_signal_handler(number, stopping.set)
                handled.append(number)
            if one.error is not None:
                print_note(f"not copied, and not followed: {one.error}; end this and run it again to follow all")
            copied = "all tenants are copied" if one.error is None else "the others are copied"
            print_note(f"{copied}; following until Ctrl-C, then --apply without --follow cuts over")
            return
        if one.row_count:
            print_note(f"followed to {one.followed_to.isoformat(timespec='seconds')}: {one.row_count} rows")
        if one.error is not None:
            print_note(f"{one.error}; tried again in {INTERVAL_S:g} s")

    handled: list[signal.Signals] = []
    try:
        return await importer.follow(stopping, report)
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def read_file(path: Path) -> bytes:
    """Return a file of queries. Raises `ConfigurationError`."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_MAX_BYTES + 1)
    except OSError as exc:
        raise ConfigurationError(f"queries: expected a readable file at {path}, got: {exc.strerror}") from None


def _counts(reports: Iterable[TenantReport]) -> dict[str, int]:
    return dict(sorted(Counter(report.state.value for report in reports).items()))


def _describe(
    result: ImportResult, refused: Sequence[RefusedRow], refused_count: int, *, is_plan: bool
) -> Iterator[Part]:
    shown = sorted(result.reports, key=lambda report: report.state not in TROUBLES)
    yield from first_rows(COLUMNS, [_row(report, is_plan=is_plan) for report in shown])
    rows = [
        (" ".join(row.tenant), row.resource_type, shorten(row.resource_id or "", CELL_MAX), row.reason)
        for row in refused
    ]
    columns = ("tenant", "resource type", "resource id", "cannot be taken, because")
    yield from first_rows(columns, rows, count=refused_count)
    counted = "".join(f", {count} {state}" for state, count in _counts(result.reports).items())
    yield Line(
        f"{result.source.place} at {result.source.taken_at}: {len(result.reports)} tenants{counted};"
        f" {sum(report.rows for report in result.reports)} rows, {refused_count} refused"
    )
    if is_plan:
        yield "nothing was changed; --apply imports the tenants"
        yield "first stop the writers of the source, or --follow it: rows changed after the snapshot are not taken"


def _row(report: TenantReport, *, is_plan: bool) -> tuple[object, ...]:
    certificate = report.certificate
    detail = report.detail
    if certificate is not None:
        proof = f"{certificate.rows} rows have the checksum {certificate.checksum}"
        detail = proof if detail is None else f"{detail}; {proof}"
    is_unplaced = report.shard_id is None and is_plan and report.state is ImportState.IMPORT
    return (
        report.name,
        report.business_type,
        UNPLACED if is_unplaced else report.shard_id,
        report.rows,
        report.bytes,
        sum(report.refused.values()),
        report.state,
        shorten(detail or "", CELL_MAX * 2),
    )
