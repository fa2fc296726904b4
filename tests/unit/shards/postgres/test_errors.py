"""Errors of a shard."""

from __future__ import annotations

import pytest

from simplu_worker.shards.postgres.errors import StatementFailedError, wrong_shard_message


@pytest.mark.parametrize(
    ("found", "named"), [(None, "leads to no identity;"), ("s2", "leads to the database of shard s2;")]
)
def test_wrong_shard_message_names_both_shards(found: str | None, named: str) -> None:
    """The operator corrects one of two lines of a map."""
    text = wrong_shard_message("s1", found)
    assert text.startswith("shard s1: ")
    assert named in text


def test_failed_statement_carries_the_error_of_the_server() -> None:
    """By class and code; a time-out is told from a fault."""
    error = StatementFailedError("the batch failed", error="DataError (22P02)", is_timeout=True)
    assert (str(error), error.error, error.is_timeout) == ("the batch failed", "DataError (22P02)", True)
