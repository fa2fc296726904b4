"""What PostgreSQL's error codes mean for the batch that met them."""

from __future__ import annotations

import re

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.sqlstate import Meaning, meaning_of, tells_of_the_way


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("22P02", Meaning.DATA),  # invalid_text_representation: no JSON after all
        ("22P05", Meaning.DATA),  # untranslatable_character: U+0000 in jsonb
        ("22003", Meaning.DATA),  # numeric_value_out_of_range: 1e999999
        ("22001", Meaning.DATA),  # string_data_right_truncation
        ("22021", Meaning.DATA),  # character_not_in_repertoire
        ("54000", Meaning.DATA),  # program_limit_exceeded: a jsonb over 256 MB, an index row over 2712 bytes
        ("54001", Meaning.DATA),  # statement_too_complex: nested deeper than the server's stack
        ("54011", Meaning.STATEMENT),  # too_many_columns
        ("57014", Meaning.STATEMENT),  # query_canceled: the statement's deadline
        ("XX000", Meaning.STATEMENT),  # internal_error
        ("P0001", Meaning.STATEMENT),  # raise_exception: a trigger of the shard's owner
        ("P0004", Meaning.STATEMENT),  # assert_failure
        ("21000", Meaning.STATEMENT),  # cardinality_violation
        ("23505", Meaning.STATEMENT),  # unique_violation: ours cannot meet one, an owner's constraint can
        ("23514", Meaning.STATEMENT),  # check_violation
        ("27000", Meaning.STATEMENT),  # triggered_data_change_violation
        ("2F005", Meaning.STATEMENT),  # function_executed_no_return_statement
        ("38001", Meaning.STATEMENT),  # containing_sql_not_permitted, of an external routine
        ("39004", Meaning.STATEMENT),  # null_value_not_allowed, of an external routine
        ("40001", Meaning.TRY_AGAIN),  # serialization_failure
        ("40P01", Meaning.TRY_AGAIN),  # deadlock_detected
        ("55P03", Meaning.TRY_AGAIN),  # lock_not_available
        ("26000", Meaning.TRY_AGAIN),  # invalid_sql_statement_name
        ("42P05", Meaning.TRY_AGAIN),  # duplicate_prepared_statement: behind a pooler
        ("0A000", Meaning.TRY_AGAIN),  # feature_not_supported: a cached plan after a change of the schema
        ("08006", Meaning.UNAVAILABLE),  # connection_failure
        ("25006", Meaning.UNAVAILABLE),  # read_only_sql_transaction
        ("53100", Meaning.UNAVAILABLE),  # disk_full
        ("53300", Meaning.UNAVAILABLE),  # too_many_connections
        ("57P01", Meaning.UNAVAILABLE),  # admin_shutdown
        ("57P03", Meaning.UNAVAILABLE),  # cannot_connect_now
        ("58030", Meaning.UNAVAILABLE),  # io_error
        ("28P01", Meaning.BROKEN),  # invalid_password
        ("3D000", Meaning.BROKEN),  # invalid_catalog_name: no such database
        ("42501", Meaning.BROKEN),  # insufficient_privilege
        ("42P01", Meaning.BROKEN),  # undefined_table
        ("XX001", Meaning.BROKEN),  # data_corrupted: trouble of the shard's, whichever operation meets it
        ("XX002", Meaning.BROKEN),  # index_corrupted
        ("", Meaning.BROKEN),
    ],
)
def test_meaning_is_decided_by_the_code(code: str, expected: Meaning) -> None:
    """PostgreSQL manual, appendix A."""
    assert meaning_of(code) is expected


def test_no_code_of_server_disk_or_network_is_taken_for_a_fault_of_an_operation() -> None:
    """Of all codes that asyncpg knows only those of data, constraints and routines are; a timeout may be."""
    codes = {str(one.sqlstate) for one in vars(asyncpg).values() if isinstance(getattr(one, "sqlstate", None), str)}
    of_operations = {code for code in codes if meaning_of(code) in {Meaning.DATA, Meaning.STATEMENT}}

    assert len(codes) > 200
    expected = re.compile("09|2[0-37F]|3[89]|44|54|P0|57014|XX000")
    assert {code for code in of_operations if not expected.match(code)} == set()


@given(st.text(max_size=6))
def test_any_code_has_a_meaning(code: str) -> None:
    """A future server's too."""
    assert isinstance(meaning_of(code), Meaning)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("08006", True),  # connection_failure
        ("57P01", True),  # admin_shutdown
        ("57P03", True),  # cannot_connect_now
        ("57014", False),  # query_canceled
        ("53300", False),  # too_many_connections: those that are there work
        ("25006", False),
        ("28P01", False),
        ("", False),
    ],
)
def test_way_to_a_server_is_told_apart_from_its_answers(code: str, *, expected: bool) -> None:
    """What a server says, even no, is an answer; that it goes or comes is none."""
    assert tells_of_the_way(code) is expected
