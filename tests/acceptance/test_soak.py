"""The verdict of the soak: what counts as flat."""

from __future__ import annotations

import pytest
from acceptance.soak import Bound, growth_of, is_flat

HOUR = [60.0 * minute for minute in range(60)]


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        ([100.0] * 60, True),
        ([100.0 + minute % 7 for minute in range(60)], True),  # a saw, as of a vacuum
        ([100.0 if minute % 10 else 900.0 for minute in range(60)], True),  # a few peaks
        ([200.0 - minute for minute in range(60)], True),
        ([100.0 + minute / 2 for minute in range(60)], False),
        ([100.0 + minute / 2 - (minute == 59) * 90 for minute in range(60)], False),  # the last one is low by chance
    ],
)
def test_series_is_flat_unless_most_pairs_of_its_values_grow(values: list[float], *, flat: bool) -> None:
    assert is_flat(growth_of(HOUR, values), values, Bound(share=0.1, least=1.0)) is flat


def test_growth_within_the_least_value_is_none() -> None:
    values = [10.0] * 30 + [12.0] * 30
    assert is_flat(growth_of(HOUR, values), values, Bound(share=0.0, least=3.0))
    assert not is_flat(growth_of(HOUR, values), values, Bound(share=0.0, least=0.0))
