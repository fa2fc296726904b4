"""The checksum of a set of rows, and the pace of an import."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.transfers.importing.rules import RowChecksum

HASHES = st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(st.tuples(HASHES, HASHES), max_size=20)


def checksum_of(rows: list[tuple[int, int]]) -> RowChecksum:
    checksum = RowChecksum()
    for high, low in rows:
        checksum.add(high, low)
    return checksum


@given(rows=ROWS, data=st.data())
def test_checksum_does_not_depend_on_order_nor_on_how_rows_are_summed(
    rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    paged = RowChecksum()
    for page in (shuffled[:cut], shuffled[cut:]):
        paged.add(sum(high for high, _ in page), sum(low for _, low in page), row_count=len(page))

    assert paged == checksum_of(rows)
    assert len(paged.text) == 32


def test_checksum_is_the_sum_of_both_halves_modulo_two_to_the_64() -> None:
    checksum = RowChecksum()
    checksum.add(3, -5, row_count=2)
    checksum.add(2**63 - 1, 2)

    assert checksum == RowChecksum(3, 2**63 + 2, 2**64 - 3)
    assert checksum.text == "8000000000000002fffffffffffffffd"


@given(rows=ROWS, more=st.tuples(HASHES, HASHES))
def test_checksum_differs_for_another_row(rows: list[tuple[int, int]], more: tuple[int, int]) -> None:
    assert checksum_of([*rows, more]) != checksum_of(rows)
    assert checksum_of([*rows, (more[0] ^ 1, more[1])]) != checksum_of([*rows, more])
    assert checksum_of([*rows, (more[0], more[1] ^ 1)]) != checksum_of([*rows, more])
