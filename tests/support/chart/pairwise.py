"""Combinations of values in which each two values of different dimensions meet at least once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

Row = dict[str, str]
Pair = frozenset[tuple[str, str]]


def pairs_of(row: Mapping[str, str]) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(sorted(row.items()), 2)}


def all_pairs(dimensions: Mapping[str, Sequence[str]]) -> set[Pair]:
    return {
        frozenset([(first, one), (second, other)])
        for first, second in combinations(dimensions, 2)
        for one in dimensions[first]
        for other in dimensions[second]
    }


def pairwise_rows(dimensions: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """Yield few rows, always the same ones, that contain all pairs; the first has the first value of each dimension."""
    missing = all_pairs(dimensions)
    row = {name: values[0] for name, values in dimensions.items()}
    while True:
        yield row
        missing -= pairs_of(row)
        if not missing:
            return
        row = dict(min(missing, key=sorted))
        for name, values in dimensions.items():
            if name not in row:
                row[name] = max(values, key=lambda value: len(pairs_of(row | {name: value}) & missing))
