"""Merge laborious patches in the worker, one resource at a time, so that no statement takes more than linear time.

Only one document is in memory at a time. The row stays locked from its read to the end of the transaction, so that no
other batch changes it in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.operations.document_bounds import BOUNDS_TEXT, exceeds_bounds
from simplu_worker.operations.merge_patch import is_laborious, merge_texts
from simplu_worker.operations.operation import Operation
from simplu_worker.operations.patched_document import PatchedDocument
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.vocabulary import OperationKind

ResourceId: TypeAlias = tuple[str, str, str]  # tenant, type, id

DOCUMENT_MAX_BYTES: Final = 32 * 1024 * 1024  # as Postgres stores it uncompressed; a larger one is never read
BOUNDS_ERROR: Final = f"the merged data: expected {BOUNDS_TEXT}, got more"
PATCH: Final = OperationKind.PATCH  # looked up once: access to an enum member is slow


class BoundsExceededError(PermanentError):
    """A document is not stored: it has too many values, too long a number, or too much text."""


def find_laborious(
    operations: Sequence[Operation], patches: Iterable[int], large: Container[ResourceId]
) -> frozenset[int]:
    """Return those indexes of *patches* that the worker merges; *large* are resources of which it merges all."""
    return frozenset(
        index
        for index in patches
        if is_laborious(operations[index].text or "") or resource_of(operations[index]) in large
    )


def resource_of(operation: Operation) -> ResourceId:
    """Return the tenant, type and id of an operation's resource."""
    return operation.tenant_id, operation.resource_type, operation.resource_id or ""


def updated_by(patch: Operation, data: str) -> Operation:
    """Return an `update` in place of *patch*, with the *data* that it makes."""
    return msgspec.structs.replace(patch, kind=OperationKind.UPDATE, data=msgspec.Raw(data))


class MergedPatches(NamedTuple):
    """The JSON text of a resource's data with patches merged, and the numbers of those that would exceed the bounds."""

    data: str
    refused: Sequence[int]


async def merge_together(connection: Connection, key: ResourceId, patches: Sequence[Operation]) -> MergedPatches | None:
    """Lock the row of a resource, and merge *patches* one after the other into its data; change nothing.

    Return None where there is no row, and where the patches are to be merged one by one: the data are beyond the
    bounds, or not even a text.
    """
    row = await connection.fetchrow(QUERIES["lock_target"], *key, DOCUMENT_MAX_BYTES)
    if row is None or row["data"] is None:
        return None
    texts = [patch.text or "" for patch in patches]
    try:
        return await asyncio.to_thread(_merge_in_turn, row["data"], texts)
    except (ValueError, RecursionError):
        return None


def _merge_in_turn(data: str, patches: Sequence[str]) -> MergedPatches:
    document = PatchedDocument(data)
    refused = [number for number, patch in enumerate(patches) if not document.merge(patch)]
    return MergedPatches(document.text().decode(), refused)


async def merge_in_worker(connection: Connection, operation: Operation) -> Operation:
    """Return an `update` with the effect of *operation*, a patch, on the row that *connection* now sees, and lock it.

    Return *operation* itself where there is no row. Raises `BoundsExceededError`.
    """
    merged = await merge_into_row(connection, resource_of(operation), operation.text or "")
    return operation if merged is None else updated_by(operation, merged)


async def merge_into_row(connection: Connection, key: ResourceId, patch: str) -> str | None:
    """Lock the row of a resource (tenant, type, id), and return its data changed by *patch*; change nothing.

    Return None where there is no row. Raises `BoundsExceededError`.
    """
    row = await connection.fetchrow(QUERIES["lock_target"], *key, DOCUMENT_MAX_BYTES)
    if row is None:
        return None
    try:
        if row["data"] is None:
            return await _merge_on_shard(connection, key, patch)
        merged = await asyncio.to_thread(merge_texts, row["data"], patch)
    except (ValueError, RecursionError):  # Postgres stores or refuses texts that Python cannot represent
        return await _merge_on_shard(connection, key, patch)
    if await asyncio.to_thread(exceeds_bounds, merged):
        raise BoundsExceededError(BOUNDS_ERROR)
    return merged.decode()


async def _merge_on_shard(connection: Connection, key: ResourceId, patch: str) -> str:
    merged: str | None = await connection.fetchval(QUERIES["patch_target"], *key, patch)
    if merged is None:
        raise BoundsExceededError(BOUNDS_ERROR)
    return merged
