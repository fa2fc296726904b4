"""The certificate of an import, as the journal has it."""

from __future__ import annotations

import msgspec
import pytest

from simplu_worker.transfers.importing.rules import ImportCertificate, parse_certificate

CERTIFICATE = ImportCertificate(
    business_id="b",
    location_id="l",
    business_type="gym",
    shard_id="s1",
    source="db:5432/pos",
    snapshot_at="2026-01-01 10:00:00+00",
    mapping="digest",
    rows=2,
    bytes=30,
    checksum="0" * 32,
    verified_at="2026-01-01T10:00:01+00:00",
    worker_version="1",
    tables={"public.t": 2},
)


def test_certificate_is_read_as_it_was_written() -> None:
    text = msgspec.json.encode(CERTIFICATE).decode()

    assert parse_certificate(text) == CERTIFICATE
    assert '"snapshotAt":"2026-01-01 10:00:00+00"' in text
    assert "refused" not in text
    assert "deleted" not in text


@pytest.mark.parametrize("text", [None, "{}", '{"mapping": "digest", "followedTo": "2026-01-01T10:00:00Z"}'])
def test_other_details_are_no_certificate(text: str | None) -> None:
    assert parse_certificate(text) is None
