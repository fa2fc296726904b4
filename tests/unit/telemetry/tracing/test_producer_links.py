from __future__ import annotations

import pytest

from simplu_worker.telemetry.exported_spans import choose_links


def _text(number: int, *, is_sampled: bool = True) -> str:
    return f"00-{number:032x}-{number:016x}-{is_sampled:02x}"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], []),
        ([_text(2), _text(1), _text(2)], [2, 1]),  # once each
        ([_text(1), _text(2), _text(3), _text(4)], [1, 2, 3]),
        ([_text(1, is_sampled=False), _text(2), _text(3), _text(4)], [2, 3, 4]),
        (["", "x", "x", _text(1)], [1]),
        ([f"{_text(1)}-more", f"cc{_text(2)[2:]}-more"], [2]),  # a later version may have more fields
    ],
)
def test_links_are_few_and_sampled_ones_go_first(texts: list[str], expected: list[int]) -> None:
    assert [span.trace_id for span in choose_links(texts, 3)] == expected
