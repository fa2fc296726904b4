"""Errors of a shard."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.errors import StatementFailedError, wrong_shard_message
from simplu_worker.shards.types import ProvisionRequest, ShardUnavailableError


@pytest.mark.parametrize(
    ("found", "named"), [(None, "leads to no identity;"), ("s2", "leads to the database of shard s2;")]
)
def test_wrong_shard_message_names_both_shards(found: str | None, named: str) -> None:
    text = wrong_shard_message("s1", found)
    assert text.startswith("shard s1: ")
    assert named in text


def test_failed_statement_carries_the_error_of_the_server() -> None:
    error = StatementFailedError("the batch failed", error="DataError (22P02)", is_timeout=True)
    assert (str(error), error.error, error.is_timeout) == ("the batch failed", "DataError (22P02)", True)


def test_unavailable_shard_is_named_where_it_does_not_answer() -> None:
    assert ShardUnavailableError("refused", shard_id="s1").shard_id == "s1"
    assert ShardUnavailableError("refused").shard_id is None


def test_request_is_for_the_tenant_of_its_business_and_location() -> None:
    request = ProvisionRequest("b", "l", "gym", datetime(2026, 3, 1, tzinfo=UTC))
    assert request.tenant_id == "b-l"


def test_error_keeps_the_time_after_which_to_try_again() -> None:
    assert (RetryableError("wait", retry_after_s=3.0).retry_after_s, RetryableError("no").retry_after_s) == (3.0, None)


def test_errors_of_a_shard_are_those_of_a_dependency() -> None:
    failed = StatementFailedError("the batch failed", error="DataError (22P02)", is_timeout=False)
    unavailable = ShardUnavailableError("refused", shard_id="s1")
    assert (failed.retry_after_s, failed.shard_id, unavailable.retry_after_s) == (None, None, None)
