"""`types show`: the business types of all shards, and where they differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_json, print_line, print_note, print_silent, print_table
from simplu_worker.commands.requirements import require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards

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


async def show_types(settings: Settings, name: str | None, *, as_json: bool) -> int:
    """Print the types, or one of them with its file. Return 1 for a silent shard, or if no shard has *name*."""
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        known = [shard.shard_id for shard in await shards.locator.list_shards()]
        found = await fetch_from_all_shards(shards.locator, shards.pools, QUERIES["read_types"])
    silent = found.silent_shard_ids
    versions = [
        one for one in versions_of(found.rows, sorted(set(known) - set(silent))) if name is None or one.name == name
    ]
    if as_json:
        print_json({"types": versions, "shardsWithoutAnswer": silent})
    else:
        _print(versions, with_files=name is not None)
        print_silent(silent)
        if name is not None and not versions:
            print_note(f"no shard that answers has the type {name}")
    return 1 if silent or (name is not None and not versions) else 0


def versions_of(rows: Iterable[tuple[str, dict[str, Any]]], shard_ids: Sequence[str]) -> list[TypeVersion]:
    """Return the versions of each type among the rows of *shard_ids*, the most common first."""
    by_version: dict[tuple[str, str | None, bool], list[tuple[str, dict[str, Any]]]] = {}
    for shard_id, row in rows:
        by_version.setdefault((row["name"], row["digest"], row["is_applied"]), []).append((shard_id, row))
    having: dict[str, set[str]] = {}
    for (name, _, _), found in by_version.items():
        having.setdefault(name, set()).update(shard_id for shard_id, _ in found)
    versions = [
        TypeVersion(
            name,
            digest,
            "types apply" if is_applied else "the package",
            sum(row["tenant_count"] for _, row in found),
            sorted(shard_id for shard_id, _ in found),
            [shard_id for shard_id in shard_ids if shard_id not in having[name]],
            found[0][1]["definition"],
        )
        for (name, digest, is_applied), found in by_version.items()
    ]
    return sorted(versions, key=lambda one: (one.name, -len(one.shards), one.digest or ""))


def _print(versions: Sequence[TypeVersion], *, with_files: bool) -> None:
    print_table(COLUMNS, map(_row, versions))
    for one in versions if with_files else ():
        print_line(f"{one.name} {(one.digest or '')[:DIGEST_SHOWN]}:", "bold")
        for line in (one.definition or "").splitlines():
            print_line(line)


def _row(one: TypeVersion) -> tuple[object, ...]:
    digest = (one.digest or "")[:DIGEST_SHOWN]
    return one.name, one.written_by, digest, one.tenants, ", ".join(one.shards), ", ".join(one.missing)
