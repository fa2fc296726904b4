"""The statement that applies the waves of a batch, by what the batch contains, and its arguments. Pure.

A server prepares every part of a plan again at each run. For small batches that takes as long as the work itself, so
there is a text for each of the frequent contents (`applying.sql`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from simplu_worker.operations.admission import TenantRow
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.operation_log import PLACES
from simplu_worker.shards.postgres.column_packing import pack_columns
from simplu_worker.vocabulary import READING_KINDS, OperationKind

RESULT_MAX_BYTES: Final = 1024 * 1024  # docs/outcomes.md: a list over 1 MiB is result_too_large
LIST: Final = OperationKind.LIST  # looked up once: access to an enum member is slow
READ: Final = OperationKind.READ


class WaveStatement(msgspec.Struct, frozen=True):
    """A query for waves. Only one that *has_lists* applies a `list`; it takes more arguments."""

    query: str
    has_lists: bool


def statement_for(
    reading_kinds: Collection[OperationKind], *, has_nested: bool, has_asked: bool = False, creates_new: bool = False
) -> WaveStatement:
    """Return the statement for waves with reads of *reading_kinds*; *has_nested*: with patches that have objects.

    *has_asked*: with lists that ask for more than equality, days of creation and pages (`ListQuery.asked`). With
    *creates_new* the statement fails at a created resource that exists.
    """
    has_lists, has_reads = LIST in reading_kinds, READ in reading_kinds
    if has_asked or has_nested or (has_lists and has_reads):
        query = "apply_wave" if has_lists or has_reads else "apply_nested_writes"
    elif has_lists:
        query = "apply_lists"
    else:
        query = "apply_reads" if has_reads else "apply_writes"
    is_of_lists = query in {"apply_wave", "apply_lists"}
    return WaveStatement(f"{query}_new" if creates_new else query, is_of_lists)


def wave_columns(wave: Sequence[Operation], tenants: Mapping[str, TenantRow]) -> list[list[str]]:
    """Return the columns of a wave's statement that each operation has: its keys, its kind, and its tenant's type."""
    return [
        [operation.tenant_id for operation in wave],
        [operation.kind for operation in wave],
        [operation.resource_type for operation in wave],
        [operation.resource_id or "" for operation in wave],
        [tenants[operation.tenant_id].business_type for operation in wave],
    ]


def pack_documents(wave: Sequence[Operation], separator: str) -> bytes:
    """Return the JSON text of each operation's data, or of its query's members, joined by *separator*: UTF-8."""
    return separator.encode().join(
        [operation.data or (operation.query.members.encode() if operation.query else b"") for operation in wave]
    )


def wave_arguments(
    statement: WaveStatement, places: Sequence[int], wave: Sequence[Operation], tenants: Mapping[str, TenantRow]
) -> tuple[object, ...]:
    """Return the arguments of *statement* for a wave, reads first; its operations have these *places* in the batch."""
    queries = [operation.query for operation in wave if operation.kind in READING_KINDS] if statement.has_lists else []
    separator, *keys, packed_places, requested_at = pack_columns(
        wave_columns(wave, tenants),
        [[PLACES[place] for place in places], [operation.requested_at for operation in wave]],
    )
    columns: list[object] = [packed_places, *keys, pack_documents(wave, separator), requested_at]
    if not statement.has_lists:
        return separator, *columns
    columns += [
        separator.join(column)
        for column in (
            [f"{query.days.first}T00:00:00Z" if query and query.days.first else "" for query in queries],
            [f"{query.days.last}T23:59:59.999999Z" if query and query.days.last else "" for query in queries],
            [str(query.page) if query else "" for query in queries],
            [str(query.limit) if query else "" for query in queries],
            [query.asked if query else "" for query in queries],
            [query.list_id if query else "" for query in queries],
        )
    ]
    *columns, asked, list_ids = columns
    return separator, *columns, RESULT_MAX_BYTES, asked, list_ids
