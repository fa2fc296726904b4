"""The certificate of an import, and the report of a run on each tenant. Pure."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ImportCertificate(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The proof that a tenant's rows are those of the source, kept in the journal of its shard.

    Both servers computed *checksum* over *rows* rows. *refused* are the rows that were not taken, by reason; *deleted*
    those with a tombstone. Times are texts in ISO 8601.
    """

    business_id: str
    location_id: str
    business_type: str
    shard_id: str
    source: str
    snapshot_at: str
    mapping: str
    rows: int
    bytes: int
    checksum: str
    verified_at: str
    worker_version: str
    tables: dict[str, int] = {}
    refused: dict[str, int] = {}
    deleted: int = 0


class ImportState(StrEnum):
    """The state of a tenant after a run, or the step that is planned for it."""

    IMPORT = "import"  # planned
    CONTINUE = "continue"  # planned: an earlier run was interrupted
    IMPORTED = "imported"  # copied, verified and active
    THERE = "there"  # imported by an earlier run
    FOLLOWED = "followed"  # copied, and kept up to date; still held
    DISCARD = "discard"  # planned
    DISCARDED = "discarded"  # its rows are deleted
    REFUSED = "refused"  # a person has to correct something
    LEFT = "left"  # copied, but for rows that cannot be taken; still held
    FAILED = "failed"  # a dependency failed: run it again


class TenantReport(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One tenant in the plan, or after a run. *rows* and *bytes* are those that can be taken, or were."""

    state: ImportState
    name: str
    business_id: str | None = None
    location_id: str | None = None
    business_type: str | None = None
    shard_id: str | None = None
    rows: int = 0
    bytes: int = 0
    refused: dict[str, int] = {}
    deleted: int = 0
    detail: str | None = None
    certificate: ImportCertificate | None = None


TROUBLES = frozenset({ImportState.REFUSED, ImportState.LEFT, ImportState.FAILED})


def parse_certificate(text: str | None) -> ImportCertificate | None:
    """Return the certificate in the journal's details; None if they have none."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=ImportCertificate)
    except msgspec.ValidationError:
        return None
