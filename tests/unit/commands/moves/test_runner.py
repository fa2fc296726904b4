"""What is printed of a move that has ended."""

from __future__ import annotations

from datetime import UTC, datetime

from simplu_worker.commands.moves.runner import TYPES_SHOWN, describe, sum_rows
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


def test_line_has_the_shards_the_epochs_the_sizes_the_times_and_the_verdict() -> None:
    sums = {"patient": TypeSum(101_002, 40_000_000, 7), LOG: TypeSum(268, 0, 9)}
    assert describe(certificate(sums, sums)) == (
        "smile-berlin: shard-1 → shard-2, epoch 1 → 2, 101270 rows (41.3 MiB) copied in 3.9 s, paused for 26 ms; "
        "101002 resources compared, 12 changed since: equal"
    )


def test_table_has_the_rows_the_bytes_and_the_checksum_of_each_type_those_that_differ_first() -> None:
    source = {"note": TypeSum(1, 20, 5), "patient": TypeSum(3, 600, -1), LOG: TypeSum(9, 0, 2**64 + 10)}
    target = source | {"note": TypeSum(1, 21, 6)}
    assert sum_rows(certificate(source, target)) == [
        ("note", "1 → 1", "20 → 21", "0000000000000005 → 0000000000000006"),
        (LOG, 9, 0, "000000000000000a"),
        ("patient", 3, 600, "ffffffffffffffff"),
    ]


def test_table_is_short() -> None:
    sums = {f"type-{number:02}": TypeSum(100 - number) for number in range(TYPES_SHOWN + 3)}
    rows = sum_rows(certificate(sums, sums))
    assert [row[0] for row in rows[:2]] == ["type-00", "type-01"]
    assert (len(rows), rows[-1][0]) == (TYPES_SHOWN + 1, "and 3 more")
