"""The indexes of the members that business types name as `filtered`, and what a shard lacks of them. Pure.

A list finds such an index only by its own expression, which `simplu_indexed` (migrations) puts together as here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from simplu_worker.operations.business_types import BusinessType
from simplu_worker.shards.schema.type_views import literal

INDEX_PREFIX: Final = "simplu_list_"


def index_statements(business_type: BusinessType) -> dict[str, str]:
    """Return the statements that build the indexes of a type that `read_type` accepted, by name.

    Types with a member in common share its index.
    """
    statements: dict[str, str] = {}
    for one in business_type.resource_types:
        for path in one.filtered_paths:
            value = f"{literal('{' + ','.join(path) + '}')}::pg_catalog.text[]"
            is_time = path == one.date_path
            expression = (
                f"public.simplu_timestamptz(data #> {value})"
                if is_time
                else f'pg_catalog.left(data #>> {value}, 200) COLLATE "C"'
            )
            name = INDEX_PREFIX + hashlib.sha256(expression.encode()).hexdigest()[:16]
            statements[name] = (
                f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON public.resources\n"
                f'(id, "resourceName", ({expression})) WHERE ({expression}) IS NOT NULL'
            )
    return statements


def index_changes(wanted: Iterable[Mapping[str, str]], there: Collection[str]) -> list[str]:
    """Return the statements by which a shard with the indexes *there* has those that are wanted, and no others."""
    statements = {name: text for one in wanted for name, text in one.items()}
    return [
        *(text for name, text in sorted(statements.items()) if name not in there),
        *(f"DROP INDEX CONCURRENTLY IF EXISTS public.{name}" for name in sorted(set(there) - statements.keys())),
    ]
