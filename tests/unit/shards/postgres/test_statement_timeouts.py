"""The timeouts of a transaction, by its budget."""

from __future__ import annotations

import pytest

from simplu_worker.shards.postgres.statement_timeouts import FORMATS, Isolation, ShardTimeouts, StatementBudget


@pytest.mark.parametrize(
    ("budget", "statement_ms", "lock_ms"),
    [
        (StatementBudget.USUAL, 25_000, 5_000),
        (StatementBudget.BATCH, 10_000, 300),
        (StatementBudget.PART, 2_000, 100),
        (StatementBudget.PATIENT_BATCH, 10_000, 5_000),
        (StatementBudget.PAUSE, 25_000, 300),
        (StatementBudget.SEARCH, 3_000, 1_500),
        (StatementBudget.KEY_RANGE, 25_000, 5_000),
    ],
)
def test_transaction_has_the_timeouts_of_its_budget(budget: StatementBudget, statement_ms: int, lock_ms: int) -> None:
    begin = ShardTimeouts().begin(budget)
    assert f"SET LOCAL statement_timeout = {statement_ms};" in begin
    assert f"SET LOCAL lock_timeout = {lock_ms};" in begin
    limits = ShardTimeouts().limits_of(budget)
    assert (limits.statement_s * 1000, limits.lock_s * 1000) == (statement_ms, lock_ms)
    assert begin.startswith("BEGIN ISOLATION LEVEL READ COMMITTED;\nSET LOCAL lock_timeout")
    assert begin.endswith(f"SET LOCAL statement_timeout = {statement_ms};\n{limits.plans}")


@pytest.mark.parametrize("budget", [one for one in StatementBudget if one is not StatementBudget.PAUSE])
def test_wait_for_a_lock_is_never_longer_than_for_any(budget: StatementBudget) -> None:
    assert ShardTimeouts(lock_s=0.05).limits_of(budget).lock_s == 0.05


@pytest.mark.parametrize("budget", StatementBudget)
def test_only_what_reads_by_an_index_has_its_plans(budget: StatementBudget) -> None:
    begin = ShardTimeouts().begin(budget)
    is_by_index = budget in {StatementBudget.SEARCH, StatementBudget.KEY_RANGE}
    is_of_batch = budget in {StatementBudget.BATCH, StatementBudget.PART, StatementBudget.PATIENT_BATCH}
    assert ("enable_seqscan = off" in begin, "force_custom_plan" in begin) == (is_by_index or is_of_batch, is_by_index)
    assert ("READ ONLY" in begin) == (budget is StatementBudget.SEARCH)
    assert ("enable_sort = off" in begin) == (budget is StatementBudget.KEY_RANGE)


@pytest.mark.parametrize("isolation", Isolation)
def test_transaction_begins_with_its_isolation_then_the_settings_of_its_session(isolation: Isolation) -> None:
    begin = ShardTimeouts().begin(StatementBudget.KEY_RANGE, isolation, settings="SET LOCAL jit = off;\n")
    assert begin.startswith(f"BEGIN ISOLATION LEVEL {isolation};\nSET LOCAL jit = off;\nSET LOCAL lock_timeout = 5000;")


@pytest.mark.parametrize(("version", "is_known"), [(14, False), (16, False), (17, True), (18, True)])
def test_settings_are_those_that_the_server_knows(version: int, is_known: bool) -> None:  # noqa: FBT001
    settings = ShardTimeouts().settings(version, is_own_session=False)
    assert ("SET LOCAL transaction_timeout = 0;" in settings) is is_known
    assert all(line.startswith("SET LOCAL ") for line in settings.splitlines())
    assert {f"SET LOCAL {name} = {value};" for name, value in FORMATS.items()} < {*settings.splitlines()}
    assert "SET LOCAL idle_in_transaction_session_timeout = 30000;" in settings


def test_session_of_its_own_has_what_statements_outside_transactions_need() -> None:
    lines = ShardTimeouts().settings(18, is_own_session=True).splitlines()
    assert {
        "SET default_transaction_isolation = 'READ COMMITTED';",
        "SET lock_timeout = 5000;",
        "SET statement_timeout = 25000;",
        "SET TimeZone = 'UTC';",
        "SET idle_in_transaction_session_timeout = 30000;",
        "SET transaction_timeout = 0;",
    } <= {*lines}
    assert not any("LOCAL" in line for line in lines)
