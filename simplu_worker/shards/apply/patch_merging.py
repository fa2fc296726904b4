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
from simplu_worker.operations.json_record import BOUNDS_TEXT, exceeds_bounds
from simplu_worker.operations.merge_patch import PatchedDocument, is_laborious, merge_texts
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.vocabulary import OperationKind

ResourceId: TypeAlias = tuple[str, str, str]  # tenant, type, id

DOCUMENT_MAX_BYTES: Final = 32 * 1024 * 1024  # as Postgres stores it uncompressed; a larger one is never read
BOUNDS_ERROR: Final = f"the merged data: expected {BOUNDS_TEXT}, got more"
PATCH: Final = OperationKind.PATCH  # looked up once: access to an enum member is slow


TOGETHER_MAX_BYTES: Final = 16 * 1024  # as DOCUMENT_MAX_BYTES, of documents that are in memory together


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
    data = (await _lock(connection, [key], DOCUMENT_MAX_BYTES)).get(0)
    if data is None:
        return None
    texts = [patch.text or "" for patch in patches]
    try:
        return await asyncio.to_thread(_merge_in_turn, data, texts)
    except (ValueError, RecursionError):
        return None


def _merge_in_turn(data: str, patches: Sequence[str]) -> MergedPatches:
    document = PatchedDocument(data)
    refused = [number for number, patch in enumerate(patches) if not document.merge(patch)]
    return MergedPatches(document.text().decode(), refused)


async def merge_each(connection: Connection, patches: Sequence[Operation]) -> list[str | BoundsExceededError | None]:
    """Lock the rows of resources, and return the data of each changed by its one patch; change nothing.

    None where there is no row.
    """
    stored = await _lock(connection, list(map(resource_of, patches)), TOGETHER_MAX_BYTES)
    return [
        await _merge_one(connection, patch, stored[number]) if number in stored else None
        for number, patch in enumerate(patches)
    ]


async def _merge_one(connection: Connection, patch: Operation, data: str | None) -> str | BoundsExceededError | None:
    key, text = resource_of(patch), patch.text or ""
    try:
        # Large data are read one by one.
        return await (merge_into_row(connection, key, text) if data is None else _merge(connection, key, text, data))
    except BoundsExceededError as exc:
        return exc


async def merge_into_row(connection: Connection, key: ResourceId, patch: str) -> str | None:
    """Lock the row of a resource (tenant, type, id), and return its data changed by *patch*; change nothing.

    Return None where there is no row. Raises `BoundsExceededError`.
    """
    stored = await _lock(connection, [key], DOCUMENT_MAX_BYTES)
    return await _merge(connection, key, patch, stored[0]) if stored else None


async def _lock(connection: Connection, keys: Sequence[ResourceId], max_bytes: int) -> dict[int, str | None]:
    """Lock the rows of resources; return the data of those that exist, None for larger ones, by their places."""
    rows = await connection.fetch(QUERIES["lock_targets"], *map(list, zip(*keys, strict=True)), max_bytes)
    return {row["number"]: row["data"] for row in rows}


async def _merge(connection: Connection, key: ResourceId, patch: str, data: str | None) -> str:
    if data is None:
        return await _merge_on_shard(connection, key, patch)
    try:
        if len(data) + len(patch) <= TOGETHER_MAX_BYTES:
            return _merge_within_bounds(data, patch)
        return await asyncio.to_thread(_merge_within_bounds, data, patch)
    except (ValueError, RecursionError):  # Postgres stores or refuses texts that Python cannot represent
        return await _merge_on_shard(connection, key, patch)


def _merge_within_bounds(data: str, patch: str) -> str:
    merged = merge_texts(data, patch)
    if exceeds_bounds(merged):
        raise BoundsExceededError(BOUNDS_ERROR)
    return merged.decode()


async def _merge_on_shard(connection: Connection, key: ResourceId, patch: str) -> str:
    merged: str | None = await connection.fetchval(QUERIES["patch_target"], *key, patch)
    if merged is None:
        raise BoundsExceededError(BOUNDS_ERROR)
    return merged
