"""`types check`: whether the files of a folder are valid, and which existing resources they do not know or refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_json, print_line, print_silent, print_table
from simplu_worker.commands.requirements import require_settings
from simplu_worker.commands.types.apply import OTHER_COLUMNS
from simplu_worker.commands.types.folder import read_folder
from simplu_worker.config.settings import Settings
from simplu_worker.operations.business_types import ResourceType
from simplu_worker.operations.schema_judge import Schema, count_findings
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.shard_query import QueryLimits, fetch_from_shard, query_all_shards
from simplu_worker.shards.schema.type_files import OWN_NAMES, TypeFile
from simplu_worker.shards.tenants.other_names import OtherName, find_other_names

# All documents of a large shard take minutes; each statement has the bounds of the pool.
LIMITS: Final = QueryLimits(answer_s=3600.0, all_s=3600.0)
PAGE_ROWS: Final = 200
PAGE_BYTES: Final = 1024 * 1024  # as they are stored, compressed perhaps
UNKNOWN_COLUMNS: Final = ("shard", "type", "unknown resource type", "resources", "tenants")
FINDING_COLUMNS: Final = ("shard", "type", "resource type", "resources that do not fit", "place in the schema")


Schemas: TypeAlias = Sequence[tuple[ResourceType, Schema]]


class UnknownName(msgspec.Struct, frozen=True, rename="camel"):
    """Resources on a shard whose resource type the file of their business type does not know."""

    shard_id: str
    type: str
    resource_type: str
    resources: int
    tenants: int


class SchemaFinding(msgspec.Struct, frozen=True, rename="camel"):
    """Resources on a shard that do not fit a schema, counted at the first place where each one fails."""

    shard_id: str
    type: str
    resource_type: str
    resources: int
    schema_path: str


class CheckedRows(msgspec.Struct, frozen=True):
    """What the files say of the rows of one shard; *others* are left under names of before."""

    unknown: Sequence[UnknownName]
    findings: Sequence[SchemaFinding]
    others: Sequence[OtherName]


async def check_types(settings: Settings, folder: Path, *, as_json: bool) -> int:
    """Print the resources that the files do not know, whose schemas they do not fit, or that have another name.

    Return 1 if there are some, or a shard did not answer. Raises ConfigurationError if a file is not valid.
    """
    require_settings(settings, routes=True)
    files = read_folder(folder)
    schemas = {name: _schemas_of(file) for name, file in files.items()}
    async with open_shards(settings) as shards:
        known = sorted(await shards.locator.list_shards(), key=lambda shard: shard.shard_id)

        async def ask(address: ShardAddress) -> CheckedRows:
            return await _check_rows(shards.pools.ensure_pool(address), files, schemas)

        answers = await query_all_shards(known, ask, limits=LIMITS)
    silent = [shard.shard_id for shard in known if shard.shard_id not in answers]
    checked = [answers[shard.shard_id] for shard in known if shard.shard_id in answers]
    unknown = [one for rows in checked for one in rows.unknown]
    findings = [one for rows in checked for one in rows.findings]
    others = [one for rows in checked for one in rows.others]
    if as_json:
        found = {"unknown": unknown, "findings": findings, "otherNames": others}
        print_json({"types": sorted(files), **found, "shardsWithoutAnswer": silent})
    else:
        _print(files, unknown, findings)
        if others:
            print_table(OTHER_COLUMNS, map(msgspec.structs.astuple, others))
        print_silent(silent)
    return 1 if unknown or findings or others or silent else 0


def _schemas_of(file: TypeFile) -> Schemas:
    return [(one, Schema(one.schema)) for one in file.type.resource_types if one.schema is not None]


async def _check_rows(pool: ShardPool, files: Mapping[str, TypeFile], schemas: Mapping[str, Schemas]) -> CheckedRows:
    """Return what the files say of the rows of one shard. Raises `RetryableError`."""
    unknown: list[UnknownName] = []
    findings: list[SchemaFinding] = []
    for name, file in files.items():
        names = [*OWN_NAMES, file.type.staff_resource_type]
        names += [resource_name for one in file.type.resource_types for resource_name in one.names]
        rows = await fetch_from_shard(pool, QUERIES["count_unknown_names"], name, names)
        unknown += [UnknownName(pool.address.shard_id, name, *_counts(row)) for row in rows]
        findings += await _judge_rows(pool, name, schemas[name])
    return CheckedRows(unknown, findings, await find_other_names(pool, files))


def _counts(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return row["name"], row["row_count"], row["tenant_count"]


async def _judge_rows(pool: ShardPool, name: str, schemas: Schemas) -> list[SchemaFinding]:
    """Return what *schemas* find in the rows of the type *name* on one shard, whatever follows from a finding."""
    if not schemas:
        return []
    tenants = [row["id"] for row in await fetch_from_shard(pool, QUERIES["list_tenants_of_type"], name)]
    findings: list[SchemaFinding] = []
    for resource_type, schema in schemas:
        counts: Counter[str] = Counter()
        for tenant_id in tenants:
            for stored_name in resource_type.names:
                async for documents in _documents(pool, tenant_id, stored_name):
                    counts += count_findings(schema, documents)
        findings += [
            SchemaFinding(pool.address.shard_id, name, resource_type.name, count, path)
            for path, count in counts.most_common()
        ]
    return findings


async def _documents(pool: ShardPool, tenant_id: str, name: str) -> AsyncIterator[Iterable[bytes]]:
    """Yield all documents with *name* of a tenant, page by page."""
    last = ""
    while True:
        rows = await fetch_from_shard(pool, QUERIES["read_documents"], tenant_id, name, last, PAGE_ROWS, PAGE_BYTES)
        yield [row["data"].encode() for row in rows]
        if not rows or len(rows) == rows[0]["found_count"] < PAGE_ROWS:
            return
        last = rows[-1]["resource_id"]


def _print(files: Mapping[str, TypeFile], unknown: Sequence[UnknownName], findings: Sequence[SchemaFinding]) -> None:
    print_line(f"valid: {', '.join(sorted(files)) or 'no file'}")
    if unknown:
        print_table(UNKNOWN_COLUMNS, map(msgspec.structs.astuple, unknown))
    if findings:
        print_table(FINDING_COLUMNS, map(msgspec.structs.astuple, findings))
