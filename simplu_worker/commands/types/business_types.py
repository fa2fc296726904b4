"""The commands of `types`: apply, check and show business types, the files of a folder."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.commands.moves import clear_cache
from simplu_worker.commands.output import Answer, Line, Part, Table, table_of
from simplu_worker.commands.running import ask_shards, open_known_shards
from simplu_worker.config.settings import Settings
from simplu_worker.errors import ConfigurationError
from simplu_worker.operations.business_types import ResourceType
from simplu_worker.operations.schema_judge import Schema, count_findings
from simplu_worker.shards.apply import judging
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.shard_query import QueryLimits, fetch_from_shard, query_with_causes
from simplu_worker.shards.schema.type_files import (
    OWN_NAMES,
    TypeFile,
    TypeFileError,
    TypesPlan,
    problems_between,
    read_type,
)
from simplu_worker.shards.schema.upgrade import UPGRADE_TIMEOUTS, Upgrader, plan_on
from simplu_worker.shards.tenants.resource_changes import OtherName, find_other_names, store_under_names

COLUMNS: Final = ("type", "written by", "digest", "tenants", "shards", "shards without it")
DIGEST_SHOWN: Final = 12


class TypeVersion(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One version of a type, and the shards that have it; *missing* are those that have no version of it."""

    name: str
    digest: str | None
    written_by: str
    tenants: int
    shards: Sequence[str]
    missing: Sequence[str] = ()
    definition: str | None = None


async def show_types(settings: Settings, name: str | None) -> Answer:
    """Return the types, or one of them with its file; it fails if no shard has *name*."""
    answers, silent = await ask_shards(settings, lambda pool: fetch_from_shard(pool, QUERIES["read_types"]))
    versions = [one for one in versions_of(answers) if name is None or one.name == name]
    is_missing = name is not None and not versions
    parts: list[Part] = [Table(COLUMNS, map(_row, versions))]
    for one in versions if name is not None else ():
        parts.append(Line(f"{one.name} {(one.digest or '')[:DIGEST_SHOWN]}:", "bold"))
        parts += map(Line, (one.definition or "").splitlines())
    parts.append(f"no shard that answers has the type {name}" if is_missing else None)
    return Answer({"types": versions}, parts, silent, is_missing)


def versions_of(answers: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[TypeVersion]:
    """Return the versions of each type among the rows of the shards, the most common first."""
    by_version: defaultdict[tuple[str, str | None, bool], dict[str, Mapping[str, Any]]] = defaultdict(dict)
    having: defaultdict[str, set[str]] = defaultdict(set)
    for shard_id, rows in answers.items():
        for row in rows:
            by_version[row["name"], row["digest"], row["is_applied"]][shard_id] = row
            having[row["name"]].add(shard_id)
    versions = [
        TypeVersion(
            name,
            digest,
            "types apply" if is_applied else "the package",
            sum(row["tenant_count"] for row in found.values()),
            sorted(found),
            sorted(answers.keys() - having[name]),
            next(iter(found.values()))["definition"],
        )
        for (name, digest, is_applied), found in by_version.items()
    ]
    return sorted(versions, key=lambda one: (one.name, -len(one.shards), one.digest or ""))


def _row(one: TypeVersion) -> tuple[object, ...]:
    digest = (one.digest or "")[:DIGEST_SHOWN]
    return one.name, one.written_by, digest, one.tenants, one.shards, one.missing


def read_folder(folder: Path) -> dict[str, TypeFile]:
    """Return the types of a folder by name. Raises ConfigurationError, with every problem of every file."""
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: expected a folder with a file NAME.json for each business type")
    files: dict[str, TypeFile] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            file = _read(path)
        except TypeFileError as exc:
            problems += [f"{path.name}: {problem}" for problem in exc.problems]
            continue
        files[file.type.name] = file
    problems += problems_between(files)
    if problems:
        raise ConfigurationError(*problems)
    return files


def _read(path: Path) -> TypeFile:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise TypeFileError([f"expected a file of UTF-8 that can be read, got {type(exc).__name__}"]) from None
    file = read_type(text)
    if path.stem != file.type.name:
        raise TypeFileError([f"expected the type {path.stem}, after which the file is named, got {file.type.name}"])
    return file


APPLY_COLUMNS: Final = {
    "shardId": "shard",
    "state": "state",
    "types": "types",
    "droppedViews": "views that go",
    "problems": "problem",
}
OTHER_COLUMNS: Final = {
    "shardId": "shard",
    "type": "type",
    "resourceType": "resource type",
    "storedAs": "stored as",
    "resources": "resources",
    "tenants": "tenants",
    "underBoth": "ids under both",
}
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
PATIENCE_S: Final = 60.0  # for the locks of a shard
APPLY_LIMITS: Final = QueryLimits(answer_s=PATIENCE_S + 15.0, all_s=2 * PATIENCE_S + 30.0)
MOVE_LIMITS: Final = QueryLimits(answer_s=86_400.0, all_s=86_400.0)


class ApplyStatus(StrEnum):
    """The state of a shard's business types."""

    CURRENT = "current"
    DIFFERENT = "different"  # from the folder
    APPLIED = "applied"
    EMPTY = "empty"  # it has no schema yet
    REFUSED = "refused"  # a person has to correct a file, or something on the shard


class ApplyReport(msgspec.Struct, frozen=True, rename="camel"):
    """One shard: its changes by type, the views that go, its problems, and resources under other names."""

    shard_id: str
    state: ApplyStatus
    types: Mapping[str, str] = {}
    dropped_views: Sequence[str] = ()
    indexes: Sequence[str] = ()
    problems: Sequence[str] = ()
    other_names: Sequence[OtherName] = ()
    moved: int = 0


async def apply_types(settings: Settings, folder: Path, remove: Collection[str], *, apply: bool) -> Answer:
    """Return what the types of *folder* change on each shard; with *apply* write them, in one transaction a shard.

    Resources under other names are moved after that. It fails if a shard refuses or does not answer, or some were not.
    """
    files = read_folder(folder)
    if not files and not remove:
        raise ConfigurationError(f"{folder}: expected a file NAME.json for each business type, got none")
    if both := sorted(files.keys() & set(remove)):
        raise ConfigurationError(f"--remove: expected types without a file in {folder}, got {', '.join(both)}")
    async with open_known_shards(settings) as (_, known), Pools(size=2, timeouts=UPGRADE_TIMEOUTS) as pools:

        async def ask(address: ShardAddress) -> ApplyReport:
            pool = pools.ensure_pool(address)
            if apply:
                plan = await Upgrader(pool, patience_s=PATIENCE_S).apply_types(files, remove=remove)
            else:
                plan = await plan_on(pool, files, remove=remove)
            others = [] if plan is None or plan.refusals else await find_other_names(pool, files)
            return _report(address.shard_id, plan, others, apply=apply)

        async def move(address: ShardAddress) -> ApplyReport:
            pool = pools.ensure_pool(address)
            moved = await store_under_names(pool, files)
            others = await find_other_names(pool, files)
            return msgspec.structs.replace(reports[address.shard_id], moved=moved, other_names=others)

        reports, silent = await query_with_causes(known, ask, limits=APPLY_LIMITS)
        due = [one for one in known if one.shard_id in reports and reports[one.shard_id].other_names]
        if apply and due:
            await asyncio.sleep(REREAD_S)
            moved, unmoved = await query_with_causes(due, move, limits=MOVE_LIMITS)
            reports, silent = reports | moved, silent | unmoved
    found = [reports[shard_id] for shard_id in sorted(reports)]
    warning = await clear_cache(settings) if any(report.moved for report in found) else None
    is_left = apply and any(report.other_names for report in found)
    is_failed = warning is not None or is_left or any(report.state is ApplyStatus.REFUSED for report in found)
    members = {"applied": apply, "shards": found, "warning": warning}
    return Answer(members, [*_describe(found, apply=apply), warning], silent, is_failed)


def _report(shard_id: str, plan: TypesPlan | None, others: Sequence[OtherName], *, apply: bool) -> ApplyReport:
    if plan is None:
        return ApplyReport(shard_id, ApplyStatus.EMPTY)
    types = {name: change.value for name, change in plan.changes.items()}
    if plan.refusals:
        state = ApplyStatus.REFUSED
    elif not plan.is_needed:
        state = ApplyStatus.CURRENT
    else:
        state = ApplyStatus.APPLIED if apply else ApplyStatus.DIFFERENT
    return ApplyReport(shard_id, state, types, plan.dropped_views, plan.index_statements, plan.refusals, others)


def _describe(reports: Sequence[ApplyReport], *, apply: bool) -> Iterator[Part]:
    yield table_of(APPLY_COLUMNS, msgspec.to_builtins(reports))
    for report in reports:
        if report.state is ApplyStatus.EMPTY:
            yield (
                f"shard {report.shard_id} has no schema; to create it: simplu-worker shards upgrade {report.shard_id} "
                "--apply, then run this again"
            )
    if others := [one for report in reports for one in report.other_names]:
        yield table_of(OTHER_COLUMNS, msgspec.to_builtins(others))
        yield LEFT if apply else MOVES
    if count := sum(report.moved for report in reports):
        yield f"{count} resources were moved to the names of their types"
    if not apply and any(report.state is ApplyStatus.DIFFERENT for report in reports):
        yield "nothing was changed; --apply writes the types, while workers run"


# All documents of a large shard take minutes; each statement has the bounds of the pool.
LIMITS: Final = QueryLimits(answer_s=3600.0, all_s=3600.0)
PAGE_ROWS: Final = 200
PAGE_BYTES: Final = 1024 * 1024  # as they are stored, compressed perhaps
COUNTED: Final = {"shardId": "shard", "type": "type", "resourceType": "resource type", "resources": "resources"}
CHECK_COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    "unknown": COUNTED | {"resourceType": "unknown resource type", "tenants": "tenants"},
    "findings": COUNTED | {"resources": "resources that do not fit", "schemaPath": "place in the schema"},
    "otherNames": OTHER_COLUMNS,
}
Schemas: TypeAlias = Sequence[tuple[ResourceType, Schema]]


async def check_types(settings: Settings, folder: Path) -> Answer:
    """Return the resources that the files do not know, whose schemas they do not fit, or that have another name.

    It fails if there are some. Raises ConfigurationError if a file is not valid.
    """
    files = read_folder(folder)
    schemas = {
        name: [(one, Schema(one.schema)) for one in file.type.resource_types if one.schema is not None]
        for name, file in files.items()
    }
    answers, silent = await ask_shards(settings, lambda pool: _check_rows(pool, files, schemas), limits=LIMITS)
    found = {name: [row for checked in answers.values() for row in checked[name]] for name in CHECK_COLUMNS}
    parts: list[Part] = [Line(f"valid: {', '.join(sorted(files)) or 'no file'}")]
    parts += [table_of(CHECK_COLUMNS[name], rows) for name, rows in found.items() if rows]
    return Answer({"types": sorted(files)} | found, parts, silent, is_failed=any(found.values()))


async def _check_rows(
    pool: ShardPool, files: Mapping[str, TypeFile], schemas: Mapping[str, Schemas]
) -> Mapping[str, list[dict[str, Any]]]:
    """Return those of one shard; of those that do not fit a schema, the first place where each one fails."""
    unknown: list[dict[str, Any]] = []
    findings: list[dict[str, Any]] = []
    for name, file in files.items():
        about = {"shardId": pool.address.shard_id, "type": name}
        names = [*OWN_NAMES, file.type.staff_resource_type]
        names += [resource_name for one in file.type.resource_types for resource_name in one.names]
        unknown += [
            about | {"resourceType": row["name"], "resources": row["row_count"], "tenants": row["tenant_count"]}
            for row in await fetch_from_shard(pool, QUERIES["count_unknown_names"], name, names)
        ]
        tenants = await fetch_from_shard(pool, QUERIES["list_tenants_of_type"], name) if schemas[name] else []
        for resource_type, schema in schemas[name]:
            counts: Counter[str] = Counter()
            for tenant, stored_name in product(tenants, resource_type.names):
                async for documents in _documents(pool, tenant["id"], stored_name):
                    counts += count_findings(schema, documents)
            findings += [
                about | {"resourceType": resource_type.name, "resources": count, "schemaPath": path}
                for path, count in counts.most_common()
            ]
    others = msgspec.to_builtins(await find_other_names(pool, files))
    return {"unknown": unknown, "findings": findings, "otherNames": others}


async def _documents(pool: ShardPool, tenant_id: str, name: str) -> AsyncIterator[Iterable[bytes]]:
    last = ""
    while True:
        rows = await fetch_from_shard(pool, QUERIES["read_documents"], tenant_id, name, last, PAGE_ROWS, PAGE_BYTES)
        yield [row["data"].encode() for row in rows]
        if not rows or len(rows) == rows[0]["found_count"] < PAGE_ROWS:
            return
        last = rows[-1]["resource_id"]
