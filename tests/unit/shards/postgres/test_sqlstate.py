"""What PostgreSQL's error codes mean for the batch that met them."""

from __future__ import annotations

import re

import asyncpg
import pytest

from simplu_worker.shards.postgres.errors import (
    QUERY_CANCELED,
    ErrorMeaning,
    Raiser,
    is_no_answer,
    meaning_of,
    raiser_of,
)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("22P02", ErrorMeaning.DATA),  # invalid_text_representation: no JSON after all
        ("54000", ErrorMeaning.DATA),  # program_limit_exceeded: a jsonb over 256 MB, an index row over 2712 bytes
        ("54001", ErrorMeaning.DATA),  # statement_too_complex: nested deeper than the server's stack
        ("54011", ErrorMeaning.STATEMENT),  # too_many_columns
        ("57014", ErrorMeaning.STATEMENT),  # query_canceled: the statement's deadline
        ("XX000", ErrorMeaning.STATEMENT),  # internal_error
        ("P0001", ErrorMeaning.STATEMENT),  # raise_exception: a trigger of the shard's owner
        ("21000", ErrorMeaning.STATEMENT),  # cardinality_violation
        ("23505", ErrorMeaning.STATEMENT),  # unique_violation: ours cannot meet one, an owner's constraint can
        ("27000", ErrorMeaning.STATEMENT),  # triggered_data_change_violation
        ("2F005", ErrorMeaning.STATEMENT),  # function_executed_no_return_statement
        ("38001", ErrorMeaning.STATEMENT),  # containing_sql_not_permitted, of an external routine
        ("39004", ErrorMeaning.STATEMENT),  # null_value_not_allowed, of an external routine
        ("40001", ErrorMeaning.TRY_AGAIN),  # serialization_failure
        ("40P01", ErrorMeaning.TRY_AGAIN),  # deadlock_detected
        ("55P03", ErrorMeaning.TRY_AGAIN),  # lock_not_available
        ("26000", ErrorMeaning.TRY_AGAIN),  # invalid_sql_statement_name
        ("42P05", ErrorMeaning.TRY_AGAIN),  # duplicate_prepared_statement: behind a pooler
        ("0A000", ErrorMeaning.TRY_AGAIN),  # feature_not_supported: a cached plan after a change of the schema
        ("08006", ErrorMeaning.UNAVAILABLE),  # connection_failure
        ("25006", ErrorMeaning.UNAVAILABLE),  # read_only_sql_transaction
        ("53100", ErrorMeaning.UNAVAILABLE),  # disk_full
        ("53300", ErrorMeaning.UNAVAILABLE),  # too_many_connections
        ("57P01", ErrorMeaning.UNAVAILABLE),  # admin_shutdown
        ("58030", ErrorMeaning.UNAVAILABLE),  # io_error
        ("28P01", ErrorMeaning.BROKEN),  # invalid_password
        ("3D000", ErrorMeaning.BROKEN),  # invalid_catalog_name: no such database
        ("42501", ErrorMeaning.BROKEN),  # insufficient_privilege
        ("42P01", ErrorMeaning.BROKEN),  # undefined_table
        ("XX001", ErrorMeaning.BROKEN),  # data_corrupted: trouble of the shard's, whichever operation meets it
        ("", ErrorMeaning.BROKEN),
    ],
)
def test_meaning_is_decided_by_the_code(code: str, expected: ErrorMeaning) -> None:
    assert meaning_of(code) is expected


def test_no_code_of_server_disk_or_network_is_taken_for_a_fault_of_an_operation() -> None:
    codes = {str(one.sqlstate) for one in vars(asyncpg).values() if isinstance(getattr(one, "sqlstate", None), str)}
    of_operations = {code for code in codes if meaning_of(code) in {ErrorMeaning.DATA, ErrorMeaning.STATEMENT}}

    assert len(codes) > 200
    expected = re.compile("0[0-29]|2[0-37F]|3[89]|44|54|P0|57014|XX000")
    assert {code for code in of_operations if not expected.match(code)} == set()


def test_statement_cancelled_before_its_timeout_is_sent_again() -> None:
    found = [meaning_of(QUERY_CANCELED, raiser, is_early=True) for raiser in Raiser]
    assert found == [ErrorMeaning.TRY_AGAIN, ErrorMeaning.TRY_AGAIN, ErrorMeaning.STATEMENT]


@pytest.mark.parametrize(
    ("code", "in_routine", "raised"),
    [
        ("22P02", ErrorMeaning.DATA, ErrorMeaning.DATA),  # whether the value alone is refused too is to be asked
        ("42501", ErrorMeaning.STATEMENT, ErrorMeaning.STATEMENT),  # the owner's trigger has no right on its own table
        ("42883", ErrorMeaning.STATEMENT, ErrorMeaning.STATEMENT),  # the owner's trigger calls a function of no schema
        ("0A000", ErrorMeaning.STATEMENT, ErrorMeaning.STATEMENT),
        ("26000", ErrorMeaning.STATEMENT, ErrorMeaning.STATEMENT),
        ("08001", ErrorMeaning.STATEMENT, ErrorMeaning.STATEMENT),  # dblink or postgres_fdw
        ("ZZ999", ErrorMeaning.STATEMENT, ErrorMeaning.STATEMENT),
        ("40P01", ErrorMeaning.TRY_AGAIN, ErrorMeaning.STATEMENT),
        ("55P03", ErrorMeaning.TRY_AGAIN, ErrorMeaning.STATEMENT),
        ("25006", ErrorMeaning.UNAVAILABLE, ErrorMeaning.STATEMENT),
        ("53100", ErrorMeaning.UNAVAILABLE, ErrorMeaning.STATEMENT),
        ("57P01", ErrorMeaning.UNAVAILABLE, ErrorMeaning.STATEMENT),
        ("XX001", ErrorMeaning.BROKEN, ErrorMeaning.STATEMENT),
    ],
)
def test_error_within_a_function_is_about_the_row_unless_the_server_has_it(
    code: str, in_routine: ErrorMeaning, raised: ErrorMeaning
) -> None:
    assert meaning_of(code, Raiser.ROUTINE) is in_routine
    assert meaning_of(code, Raiser.RAISE) is raised


def test_raiser_is_known_by_context_and_by_the_function_of_the_server() -> None:
    assert raiser_of(None, "ExecConstraints") is Raiser.SERVER
    assert raiser_of("", None) is Raiser.SERVER
    assert raiser_of("PL/pgSQL-Funktion f() Zeile 1 bei PERFORM", "ParseFuncOrColumn") is Raiser.ROUTINE
    assert raiser_of("PL/pgSQL function f() line 1 at RAISE", "exec_stmt_raise") is Raiser.RAISE


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("08006", True),  # connection_failure
        ("57P01", True),  # admin_shutdown
        ("53300", False),  # too_many_connections: those that are there work
        ("", False),
    ],
)
def test_way_to_a_server_is_told_apart_from_its_answers(code: str, *, expected: bool) -> None:
    assert is_no_answer(code) is expected
