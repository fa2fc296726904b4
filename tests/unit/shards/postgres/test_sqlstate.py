from __future__ import annotations

import re
import ssl
from typing import Any

import asyncpg
import pytest

from simplu_worker.network_errors import NO_SERVER, UNEXPLAINED
from simplu_worker.shards.postgres import errors
from simplu_worker.shards.postgres.errors import (
    QUERY_CANCELED,
    ErrorMeaning,
    Raiser,
    is_no_answer,
    meaning_of,
    raiser_of,
    state_words,
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


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("28P01", "the server refuses the user's password (28P01); correct it"),
        ("22P99", "a value that the server does not take (22P99)"),
        ("ZZ000", "an error of Postgres (ZZ000)"),
        (None, "an error of Postgres (no SQLSTATE)"),
    ],
)
def test_state_has_meaning_code_and_remedy(code: str | None, words: str) -> None:
    assert state_words(code) == words


def test_words_have_no_colon() -> None:
    texts = [*errors._BY_CODE.values(), *(words for words, _ in errors._BY_CLASS.values())]
    assert [text for text in texts if ":" in text] == []


def test_each_code_with_a_reaction_has_words() -> None:
    assert errors._MEANING_BY_CODE.keys() - errors._BY_CODE.keys() <= {"0A000", "40001", "XX000"}  # as their class


def certificate_of_another_ca() -> ssl.SSLCertVerificationError:
    error: Any = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code = 18
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (ConnectionRefusedError(111, "Connect call failed"), NO_SERVER),
        (ConnectionError("PostgreSQL server at h:1 rejected SSL upgrade"), errors.NO_TLS),
        (asyncpg.InterfaceError("connection is closed"), errors.NOT_POSTGRES),
        (asyncpg.ClientConfigurationError("invalid port"), errors.WRONG_ADDRESS),
        (ValueError("postgresql://u:secret@h"), errors.WRONG_ADDRESS),
        (FileNotFoundError(2, "No such file or directory", "/ca.pem"), "expected to use the file /ca.pem, got No such"),
        (certificate_of_another_ca(), "expected a certificate of a CA that is trusted here, got one of another; name "),
        (RuntimeError("a bug"), UNEXPLAINED),
        (asyncpg.OutdatedSchemaCacheError("x"), errors.OUTDATED),
        (asyncpg.TargetServerAttributeNotMatched("expected a primary"), "expected a primary"),
        (asyncpg.DeadlockDetectedError("row of a person"), "two transactions wait for each other (40P01)"),
        (KeyError("port"), errors.WRONG_ADDRESS),
    ],
)
def test_error_before_the_server_answers_is_in_words(exc: BaseException, words: str) -> None:
    assert errors.error_words(exc).startswith(words)


@pytest.mark.parametrize(
    ("found", "named"), [(None, "leads to no identity;"), ("s2", "leads to the database of shard s2;")]
)
def test_wrong_shard_message_names_both_shards(found: str | None, named: str) -> None:
    text = errors.wrong_shard_message("s1", found)
    assert text.startswith("shard s1: ")
    assert named in text


def test_notes_are_appended() -> None:
    error = ConnectionRefusedError()
    error.add_note("expected the passfile")
    assert errors.error_words(error) == f"{NO_SERVER}; expected the passfile"


def test_ca_of_a_shard_is_named_in_its_address() -> None:
    chained = RuntimeError("a library's")
    chained.__cause__ = certificate_of_another_ca()
    for error in (certificate_of_another_ca(), chained):
        assert "name the CA in sslrootcert" in errors.error_words(error)


@pytest.mark.parametrize(
    ("is_timeout", "limit", "fewer"),
    [(True, 5000, 500), (True, 11, 1), (True, 9, 1), (True, 2, 1), (True, 1, None), (False, 5000, None)],
)
def test_fewer_rows_are_tried_after_a_timeout_alone(*, is_timeout: bool, limit: int, fewer: int | None) -> None:
    error = errors.StatementFailedError("took too long", error="57014", is_timeout=is_timeout)
    if fewer is not None:
        assert errors.fewer_after(error, limit) == fewer
        return
    with pytest.raises(errors.StatementFailedError, match="took too long") as caught:
        errors.fewer_after(error, limit)
    assert caught.value is error


def test_duplicate_key_has_its_table() -> None:
    error = errors.DuplicateKeyError("a key exists", error="23505", table="resources")
    assert (str(error), error.error, error.table, error.is_timeout) == ("a key exists", "23505", "resources", False)
