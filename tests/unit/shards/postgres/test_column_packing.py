"""Columns of a batch as texts: splitting restores them, with any contents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.queries import SEPARATOR, pack_columns

# Much of what separators are made of, so that texts run into them.
texts = st.text(st.sampled_from(["\x1f", "\x1e", "0", "1", "a"]), max_size=5)


plain_texts = st.text(st.sampled_from(["\n", "0", "1", "a", "é"]), max_size=5)


def columns_of(column_texts: st.SearchStrategy[str], size: int) -> st.SearchStrategy[list[list[str]]]:
    return st.lists(st.lists(column_texts, min_size=size, max_size=size), min_size=1)


@pytest.mark.slow
@given(st.integers(1, 6).flatmap(lambda size: st.tuples(columns_of(texts, size), columns_of(plain_texts, size))))
def test_packed_columns_are_taken_apart_into_what_they_were(columns: tuple[list[list[str]], list[list[str]]]) -> None:
    separator, *joined = pack_columns(*columns)

    assert [text.split(separator) for text in joined] == [*columns[0], *columns[1]]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([["a", "b"], ["", "c"]], [SEPARATOR, f"a{SEPARATOR}b", f"{SEPARATOR}c"]),
        ([["one"]], [SEPARATOR, "one"]),
        ([[f"a{SEPARATOR}", "b"]], ["\x1f0\x1e", "a\x1f\x1f0\x1eb"]),
    ],
)
def test_packed_columns_have_the_usual_separator_unless_one_of_them_has_it(
    columns: list[list[str]], expected: list[str]
) -> None:
    assert pack_columns(columns) == expected
