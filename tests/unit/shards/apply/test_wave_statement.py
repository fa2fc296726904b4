from __future__ import annotations

import pytest

from simplu_worker.shards.apply.wave_run import OF_LISTS, statement_for
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.vocabulary import OperationKind

READ, LIST = OperationKind.READ, OperationKind.LIST
CASES = [
    # the kinds of reads; the statement
    ([], "apply_writes"),
    ([READ, READ], "apply_reads"),
    ([LIST], "apply_lists"),
    ([READ, LIST], "apply_lists"),
]
PARTS = {READ: "found AS (", LIST: "listed AS ("}


@pytest.mark.parametrize("creates_new", [False, True], ids=["careful", "new"])
@pytest.mark.parametrize(("kinds", "query"), CASES)
def test_statement_has_the_parts_that_the_batch_needs(
    kinds: list[OperationKind], query: str, *, creates_new: bool
) -> None:
    query += "_new" * creates_new

    assert statement_for(kinds, creates_new=creates_new) == query
    assert ("ON CONFLICT" in QUERIES[query]) is not creates_new
    assert query.startswith(OF_LISTS) == (PARTS[LIST] in QUERIES[query])
    assert all(PARTS[kind] in QUERIES[query] for kind in kinds)


def test_statements_are_all_used() -> None:
    queries = {query for _, query in CASES}
    assert queries | {f"{query}_new" for query in queries} == {name for name in QUERIES if name.startswith("apply_")}
