from __future__ import annotations

import pytest

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
