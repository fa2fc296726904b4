"""`types apply`: write the business types of a folder to all shards, or print what that would change."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.text import Text

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.moves.cache_clearing import clear_cache
from simplu_worker.commands.output.display import print_json, print_note, print_silent, print_table
from simplu_worker.commands.requirements import require_settings
from simplu_worker.commands.types.folder import read_folder
from simplu_worker.config.settings import Settings
from simplu_worker.errors import ConfigurationError, WorkerError
from simplu_worker.shards.apply import judging
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.shard_query import LIMITS, QueryLimits, query_all_shards
from simplu_worker.shards.schema.type_apply import apply_types as apply_types_to
from simplu_worker.shards.schema.type_apply import plan_on
from simplu_worker.shards.schema.type_files import TypeFile
from simplu_worker.shards.schema.type_plan import TypesPlan
from simplu_worker.shards.schema.upgrade import UPGRADE_TIMEOUTS
from simplu_worker.shards.tenants.other_names import OtherName, find_other_names, store_under_names
from simplu_worker.telemetry.log import scrub_text

COLUMNS: Final = ("shard", "state", "types", "views that go", "indexes", "problem")
OTHER_COLUMNS: Final = ("shard", "type", "resource type", "stored as", "resources", "tenants", "ids under both")
MOVES: Final = (
    "resources under other names are not found by operations once the types are written; --apply then moves them, but "
    "for ids under both names: pause their tenants meanwhile"
)
LEFT: Final = (
    "these resources were not moved: delete or rename one of two with the same id, let moves and imports end, and run "
    "this again"
)
# Workers read the types again every few seconds, and write under the names of before until then.
REREAD_S: Final = 2 * judging.REREAD_S
MOVE_LIMITS: Final = QueryLimits(answer_s=86_400.0, all_s=86_400.0)


class ApplyStatus(StrEnum):
    """The state of a shard's business types."""

    CURRENT = "current"
    DIFFERENT = "different"  # from the folder
    APPLIED = "applied"
    EMPTY = "empty"  # it has no schema yet
    REFUSED = "refused"  # a person has to correct a file, or something on the shard
    FAILED = "failed"


STYLES: Final = {
    ApplyStatus.DIFFERENT: "yellow",
    ApplyStatus.APPLIED: "green",
    ApplyStatus.REFUSED: "red",
    ApplyStatus.FAILED: "red",
}
BAD: Final = frozenset({ApplyStatus.REFUSED, ApplyStatus.FAILED})


class ApplyReport(msgspec.Struct, frozen=True, rename="camel"):
    """One shard: its changes by type, the views that go, and its problems.

    *other_names* are resources under other names than that of their type, once they were *moved* those that are left.
    """

    shard_id: str
    state: ApplyStatus
    types: Mapping[str, str] = {}
    dropped_views: Sequence[str] = ()
    indexes: Sequence[str] = ()
    problems: Sequence[str] = ()
    other_names: Sequence[OtherName] = ()
    moved: int = 0


async def apply_types(
    settings: Settings, folder: Path, remove: Collection[str], *, apply: bool, timeout_s: float, as_json: bool
) -> int:
    """Print what the types of *folder* change on each shard; with *apply* write them. Return 1 on failure.

    Each shard gets all of it in one transaction, or nothing. Resources under other names are moved after that.
    """
    require_settings(settings, routes=True)
    files = read_folder(folder)
    if not files and not remove:
        raise ConfigurationError(f"{folder}: expected a file NAME.json for each business type, got none")
    if both := sorted(files.keys() & set(remove)):
        raise ConfigurationError(f"--remove: expected types without a file in {folder}, got {', '.join(both)}")
    async with open_shards(settings) as shards:
        known = sorted(await shards.locator.list_shards(), key=lambda shard: shard.shard_id)
    async with Pools(size=2, timeouts=UPGRADE_TIMEOUTS) as pools:
        reports = await _ask_all(pools, known, files, remove, apply=apply, timeout_s=timeout_s)
        if apply and any(report.other_names for report in reports):
            await asyncio.sleep(REREAD_S)
            reports = await _move_all(pools, reports, known, files)
    warning = await clear_cache(settings) if any(report.moved for report in reports) else None
    silent = sorted({shard.shard_id for shard in known} - {report.shard_id for report in reports})
    if as_json:
        print_json({"applied": apply, "shards": reports, "shardsWithoutAnswer": silent, "warning": warning})
    else:
        _print(reports, apply=apply)
        if warning is not None:
            print_note(warning)
        print_silent(silent)
    is_left = apply and any(report.other_names for report in reports)
    return 1 if silent or warning or is_left or any(report.state in BAD for report in reports) else 0


async def _ask_all(
    pools: Pools,
    known: Sequence[ShardAddress],
    files: Mapping[str, TypeFile],
    remove: Collection[str],
    *,
    apply: bool,
    timeout_s: float,
) -> list[ApplyReport]:
    """Return the report of each shard that answered, in order."""

    async def ask(address: ShardAddress) -> ApplyReport:
        shard_id = address.shard_id
        try:
            pool = pools.ensure_pool(address)
            if apply:
                plan = await apply_types_to(pool, files, remove=remove, patience_s=timeout_s)
            else:
                plan = await plan_on(pool, files, remove=remove)
            others = [] if plan is None or plan.refusals else await find_other_names(pool, files)
        except WorkerError as exc:
            return ApplyReport(shard_id, ApplyStatus.FAILED, problems=[address.without_name(scrub_text(str(exc)))])
        return msgspec.structs.replace(_report(shard_id, plan, apply=apply), other_names=others)

    limits = QueryLimits(answer_s=timeout_s + LIMITS.all_s, all_s=2 * (timeout_s + LIMITS.all_s))
    answers = await query_all_shards(known, ask, limits=limits)
    return [answers[address.shard_id] for address in known if address.shard_id in answers]


async def _move_all(
    pools: Pools, reports: Sequence[ApplyReport], known: Sequence[ShardAddress], files: Mapping[str, TypeFile]
) -> list[ApplyReport]:
    """Move the resources under other names; return *reports* with what is left."""
    by_id = {report.shard_id: report for report in reports}

    async def move(address: ShardAddress) -> ApplyReport:
        report, pool = by_id[address.shard_id], pools.ensure_pool(address)
        try:
            moved = await store_under_names(pool, files)
            return msgspec.structs.replace(report, moved=moved, other_names=await find_other_names(pool, files))
        except WorkerError as exc:
            problem = address.without_name(scrub_text(str(exc)))
            return msgspec.structs.replace(report, state=ApplyStatus.FAILED, problems=[problem])

    due = [address for address in known if address.shard_id in by_id and by_id[address.shard_id].other_names]
    return [*(by_id | await query_all_shards(due, move, limits=MOVE_LIMITS)).values()]


def _report(shard_id: str, plan: TypesPlan | None, *, apply: bool) -> ApplyReport:
    if plan is None:
        return ApplyReport(shard_id, ApplyStatus.EMPTY)
    types = {name: change.value for name, change in plan.changes.items()}
    if plan.refusals:
        state = ApplyStatus.REFUSED
    elif not plan.is_needed:
        state = ApplyStatus.CURRENT
    else:
        state = ApplyStatus.APPLIED if apply else ApplyStatus.DIFFERENT
    return ApplyReport(shard_id, state, types, plan.dropped_views, plan.index_statements, plan.refusals)


def _print(reports: Sequence[ApplyReport], *, apply: bool) -> None:
    print_table(COLUMNS, map(_row, reports))
    for report in reports:
        if report.state is ApplyStatus.EMPTY:
            print_note(
                f"shard {report.shard_id} has no schema; to create it: simplu-worker shards upgrade {report.shard_id} "
                "--apply, then run this again"
            )
    if others := [one for report in reports for one in report.other_names]:
        print_table(OTHER_COLUMNS, map(msgspec.structs.astuple, others))
        print_note(LEFT if apply else MOVES)
    if count := sum(report.moved for report in reports):
        print_note(f"{count} resources were moved to the names of their types")
    if not apply and any(report.state is ApplyStatus.DIFFERENT for report in reports):
        print_note("nothing was changed; --apply writes the types, while workers run")


def _row(report: ApplyReport) -> tuple[Any, ...]:
    return (
        report.shard_id,
        Text(report.state, STYLES.get(report.state, "")),
        ", ".join(f"{name} {change}" for name, change in report.types.items()),
        ", ".join(report.dropped_views),
        str(len(report.indexes) or ""),
        "; ".join(report.problems),
    )
