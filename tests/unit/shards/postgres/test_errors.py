"""Errors of a shard."""

from __future__ import annotations

import pytest

from simplu_worker.shards.postgres.errors import StatementFailedError, wrong_shard_message
from simplu_worker.shards.types import ShardUnavailableError


@pytest.mark.parametrize(
    ("found", "named"), [(None, "leads to no identity;"), ("s2", "leads to the database of shard s2;")]
)
def test_wrong_shard_message_names_both_shards(found: str | None, named: str) -> None:
    text = wrong_shard_message("s1", found)
    assert text.startswith("shard s1: ")
    assert named in text


def test_errors_of_a_shard_are_those_of_a_dependency() -> None:
    failed = StatementFailedError("the batch failed", error="DataError (22P02)", is_timeout=False)
    unavailable = ShardUnavailableError("refused", shard_id="s1")
    assert (failed.retry_after_s, failed.shard_id, unavailable.retry_after_s) == (None, None, None)
