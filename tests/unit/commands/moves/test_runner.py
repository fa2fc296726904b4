"""What is printed of a move that has ended."""

from __future__ import annotations

from simplu_worker.commands.moves.runner import sum_rows
from simplu_worker.transfers.moving.checksums import LOG, Comparison, TypeSum


def test_table_has_each_type_those_that_differ_first() -> None:
    source = {"note": TypeSum(1, 20, 5), "patient": TypeSum(3, 600, -1), LOG: TypeSum(9, 0, 2**64 + 10)}
    target = source | {"note": TypeSum(1, 21, 6)}
    assert sum_rows(Comparison(source, target)) == [
        ("note", 1, "20 → 21", "0000000000000005 → 0000000000000006"),
        (LOG, 9, 0, "000000000000000a"),
        ("patient", 3, 600, "ffffffffffffffff"),
    ]
