"""Merge laborious patches in the worker, one at a time, so that no statement takes more than linear time for one.

Only one document is in memory at a time. The row stays locked from its read to the end of the transaction, so that no
other batch changes it in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from simplu_worker.operations.merge_patch import is_laborious, merge_texts
from simplu_worker.operations.operation import Operation, OperationKind
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES

DOCUMENT_MAX_BYTES: Final = 32 * 1024 * 1024  # as Postgres stores it uncompressed; a larger one is never read
PATCH: Final = OperationKind.PATCH  # looked up once: access to an enum member is slow


def find_laborious(operations: Sequence[Operation]) -> frozenset[int]:
    """Return the indexes of the patches that the worker merges."""
    return frozenset(
        index
        for index, operation in enumerate(operations)
        if operation.kind is PATCH and is_laborious(operation.data or "")
    )


async def merge_in_worker(connection: Connection, operation: Operation) -> Operation:
    """Return an `update` with the effect of *operation*, a patch, on the row that *connection* now sees, and lock it.

    Return *operation* itself where only Postgres can merge it.
    """
    key = operation.tenant_id, operation.resource_type, operation.resource_id or ""
    merged = await merge_into_row(connection, key, operation.data or "")
    return operation if merged is None else msgspec.structs.replace(operation, kind=OperationKind.UPDATE, data=merged)


async def merge_into_row(connection: Connection, key: tuple[str, str, str], patch: str) -> str | None:
    """Lock the row of a resource (tenant, type, id), and return its data changed by *patch*; change nothing.

    Return None where only Postgres can merge it: there is no row, its data are too large to be read, or one of the
    texts has a part that Postgres stores or refuses and Python cannot represent.
    """
    document = await connection.fetchval(QUERIES["lock_target"], *key, DOCUMENT_MAX_BYTES)
    if document is None:
        return None
    try:
        return await asyncio.to_thread(merge_texts, document, patch)
    except (ValueError, RecursionError):
        return None
