"""What an export writes for the events of a shard, and in which order; the statements of its target. Pure.

Each write brings a resource as it is when it is read, after its event: so a later write never has an older state, and
several changes that are read together are one write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from simplu_worker.feed.events import RESOURCE_KINDS, ReadRow
from simplu_worker.feed.types import FeedTenant, Place
from simplu_worker.transfers.importing.queries import WriteStatements, digest_of
from simplu_worker.vocabulary import FeedKind

_CHANGED: Final = """WITH changed AS (
    SELECT
        sent.business_id, sent.location_id, sent.resource_id, sent.data::pg_catalog.jsonb AS data,
        sent.date::pg_catalog.timestamptz AS date, sent.updated::pg_catalog.timestamptz AS updated
    FROM unnest(
        $1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[],
        $5::pg_catalog.text[], $6::pg_catalog.text[]
    ) AS sent (business_id, location_id, resource_id, data, date, updated)
)
"""
_INTEGER_BITS: Final = {"int2": 16, "int4": 32, "int8": 64}
_INTEGER: Final = re.compile("-?[0-9]{1,19}")
_UUID: Final = re.compile("[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")
MAKE_POSITIONS: Final = """
CREATE TABLE public.simplu_export (
    shard_id pg_catalog.text PRIMARY KEY,
    token pg_catalog.uuid NOT NULL, -- of the export that writes; another one ends at its next transaction
    basis pg_catalog.text, -- the run of the shard's server, and the mapping; null until all was compared
    batch_id pg_catalog.int8 NOT NULL DEFAULT 0,
    position pg_catalog.int4 NOT NULL DEFAULT 0,
    updated_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now()
)
"""
HAS_POSITIONS: Final = "SELECT pg_catalog.to_regclass('public.simplu_export') IS NOT NULL"
READ_POSITIONS: Final = "SELECT shard_id, basis, batch_id, position FROM public.simplu_export"
TAKE_POSITION: Final = """
INSERT INTO public.simplu_export AS known (shard_id, token) VALUES ($1, $2::pg_catalog.uuid)
ON CONFLICT (shard_id) DO UPDATE SET token = excluded.token
RETURNING basis, batch_id, position
"""
LOCK_POSITION: Final = """
SELECT FROM public.simplu_export WHERE shard_id = $1 AND token = $2::pg_catalog.uuid FOR UPDATE
"""
NOTE_POSITION: Final = """
UPDATE public.simplu_export
SET basis = $2, batch_id = $3, position = $4, updated_at = pg_catalog.clock_timestamp()
WHERE shard_id = $1
"""


class Position(msgspec.Struct, frozen=True):
    """Up to where a shard is exported. With another *basis* all of its tenants are compared first."""

    basis: str | None
    place: Place


class ExportKey(msgspec.Struct, frozen=True):
    """A resource: the type of its statements, and the one under which it is stored."""

    tenant: FeedTenant
    resource_type: str
    stored_type: str
    resource_id: str

    @property
    def name(self) -> str:
        """The resource, for people."""
        return f"{self.resource_type} {self.resource_id} of {self.tenant.business_id} {self.tenant.location_id}"


class ExportRow(msgspec.Struct, frozen=True):
    """A resource as it is; *document* is None if it is gone."""

    key: ExportKey
    document: str | None = None
    created: str | None = None
    changed: str | None = None


class RoundPlan(msgspec.Struct, frozen=True):
    """What some rows of the log ask for: resources to write, and tenants to compare whole."""

    keys: Sequence[ExportKey]
    tenants: Sequence[FeedTenant]


def plan_round(rows: Iterable[ReadRow], resource_types: Iterable[str]) -> RoundPlan:
    """Return what *rows* ask for, without resources of other types.

    A resource is at its first change, so that what refers to it comes later; one that is deleted is at its last.
    """
    known = set(resource_types)
    tenants: dict[str, FeedTenant] = {}
    keys: dict[ExportKey, None] = {}
    for event in (event for row in rows for event in row.events):
        tenant = event.tenant
        stored_type, resource_id = event.resource_type, event.resource_id
        if tenant is not None and event.kind not in RESOURCE_KINDS:
            tenants[tenant.tenant_id] = tenant
        if tenant is None or stored_type is None or resource_id is None:
            continue
        for resource_type in known.intersection((stored_type, *event.other_types)):
            key = ExportKey(tenant, resource_type, stored_type, resource_id)
            if event.kind is FeedKind.RESOURCE_DELETED:
                keys.pop(key, None)
            keys[key] = None
    return RoundPlan([key for key in keys if key.tenant.tenant_id not in tenants], list(tenants.values()))


def in_statements(rows: Iterable[ExportRow], most: int) -> list[list[ExportRow]]:
    """Return *rows* in their order, cut into what one statement writes: at most *most* rows."""
    parts: list[list[ExportRow]] = []
    for row in rows:
        last = parts[-1] if parts else None
        if last is not None and len(last) < most and _kind_of(last[0]) == _kind_of(row):
            last.append(row)
        else:
            parts.append([row])
    return parts


def _kind_of(row: ExportRow) -> tuple[str, bool]:
    return row.key.resource_type, row.document is None


def statement_of(
    rows: Sequence[ExportRow], mapping: Mapping[str, WriteStatements]
) -> tuple[str, list[list[str | None]]]:
    """Return the statement that writes *rows*, which are of one kind, and its columns."""
    statements = mapping[rows[0].key.resource_type]
    names = [(one.key.tenant.business_id, one.key.tenant.location_id, one.key.resource_id) for one in rows]
    values = [(*name, one.document, one.created, one.changed) for name, one in zip(names, rows, strict=True)]
    sql = statements.delete if rows[0].document is None else statements.upsert
    return _CHANGED + sql, [list(column) for column in zip(*values, strict=True)]


def may_be_of(text: str, column_type: str) -> bool:
    """Return whether a column of this type can have the value *text*."""
    if column_type in _INTEGER_BITS:
        return _INTEGER.fullmatch(text) is not None and abs(int(text)) < 2 ** (_INTEGER_BITS[column_type] - 1)
    return column_type != "uuid" or _UUID.fullmatch(text) is not None


def all_statements(one: WriteStatements) -> list[str]:
    """Return both statements of a type, as they are sent."""
    return [_CHANGED + one.upsert, _CHANGED + one.delete]


def digest_of_mapping(mapping: Iterable[WriteStatements]) -> str:
    """Return a text that differs for another mapping."""
    return digest_of(
        msgspec.structs.replace(one.query, sql=msgspec.json.encode((one.query.sql, one.upsert, one.delete)).decode())
        for one in mapping
    )
