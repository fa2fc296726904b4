"""What is printed of a move that has ended."""

from __future__ import annotations

from datetime import UTC, datetime

from simplu_worker.commands.moves.runner import sum_rows
from simplu_worker.transfers.moving.checksums import LOG, Comparison, TypeSum
from simplu_worker.transfers.moving.types import Certificate


def certificate(source: dict[str, TypeSum], target: dict[str, TypeSum]) -> Certificate:
    return Certificate(
        tenant="smile-berlin",
        source_shard="shard-1",
        target_shard="shard-2",
        epoch_before=1,
        epoch=2,
        pause_s=0.0256,
        duration_s=3.91,
        rows_copied=101_270,
        bytes_copied=43_306_189,
        phases_s={},
        comparison=Comparison(source, target, excluded=12),
        at=datetime(2026, 11, 1, tzinfo=UTC),
    )


def test_table_has_each_type_those_that_differ_first() -> None:
    source = {"note": TypeSum(1, 20, 5), "patient": TypeSum(3, 600, -1), LOG: TypeSum(9, 0, 2**64 + 10)}
    target = source | {"note": TypeSum(1, 21, 6)}
    assert sum_rows(certificate(source, target)) == [
        ("note", "1 → 1", "20 → 21", "0000000000000005 → 0000000000000006"),
        (LOG, 9, 0, "000000000000000a"),
        ("patient", 3, 600, "ffffffffffffffff"),
    ]
