"""The statement for the waves of a batch is the shortest that has all its parts."""

from __future__ import annotations

import pytest

from simplu_worker.shards.apply.wave_run import statement_for
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.vocabulary import OperationKind

READ, LIST = OperationKind.READ, OperationKind.LIST
CASES = [
    # the kinds of reads; "nested" if a patch has objects; the statement
    ([], "", "apply_writes"),
    ([], "nested", "apply_nested_writes"),
    ([READ, READ], "", "apply_reads"),
    ([READ], "nested", "apply_wave"),
    ([LIST], "", "apply_lists"),
    ([LIST], "nested", "apply_wave"),
    ([READ, LIST], "", "apply_wave"),
    ([LIST, READ], "nested", "apply_wave"),
]
PARTS = {READ: "found AS (", LIST: "listed AS (", "nested": "jsonb_object_agg"}


@pytest.mark.parametrize("creates_new", [False, True], ids=["careful", "new"])
@pytest.mark.parametrize(("kinds", "nested", "query"), CASES)
def test_statement_has_the_parts_that_the_batch_needs(
    kinds: list[OperationKind], nested: str, query: str, *, creates_new: bool
) -> None:
    statement = statement_for(kinds, has_nested=bool(nested), creates_new=creates_new)

    query += "_new" * creates_new
    assert statement.query == query
    assert ("ON CONFLICT" in QUERIES[query]) is not creates_new
    assert statement.has_lists == (PARTS[LIST] in QUERIES[query])
    for kind in kinds:
        assert PARTS[kind] in QUERIES[query]
    assert not nested or PARTS["nested"] in QUERIES[query]


def test_statements_are_all_used() -> None:
    queries = {query for _, _, query in CASES}
    assert queries | {f"{query}_new" for query in queries} == {name for name in QUERIES if name.startswith("apply_")}
