from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.telemetry.exported_spans import choose_links


def _text(number: int, *, is_sampled: bool = True) -> str:
    return f"00-{number:032x}-{number:016x}-{is_sampled:02x}"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], ([], 0, 0)),
        ([_text(1), _text(2)], ([1, 2], 0, 0)),
        ([_text(2), _text(1), _text(2)], ([2, 1], 0, 0)),  # once each
        ([_text(1), _text(2), _text(3), _text(4), _text(4)], ([1, 2, 3], 1, 0)),
        ([_text(1, is_sampled=False), _text(2), _text(3), _text(4)], ([2, 3, 4], 1, 0)),
        ([_text(1, is_sampled=False), _text(2)], ([2, 1], 0, 0)),
        (["", "x", "x", _text(1)], ([1], 0, 3)),
        ([f"{_text(1)}-more", f"cc{_text(2)[2:]}-more"], ([2], 0, 1)),  # a later version may have more fields
    ],
)
def test_links_are_few_and_sampled_ones_go_first(texts: list[str], expected: tuple[list[int], int, int]) -> None:
    chosen = choose_links(texts, 3)
    assert expected == ([span.trace_id for span in chosen.spans], *chosen[1:])


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())), st.integers(0, 5))
def test_no_link_is_lost_from_the_count(spans: list[tuple[int, bool]], max_count: int) -> None:
    texts = [_text(number, is_sampled=is_sampled) for number, is_sampled in spans]
    chosen = choose_links(texts, max_count)
    assert len(chosen.spans) <= max_count
    assert len(chosen.spans) + chosen.left_out_count == len({one for one in spans if one[0]})
    assert chosen.malformed_count == sum(number == 0 for number, _ in spans)
