from __future__ import annotations

import pytest

from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.connector import TargetSessionAttrs
from simplu_worker.shards.questions import bounded, column_problem, is_question, reader_addresses, without_end

PRIMARY, STANDBY = TargetSessionAttrs.PRIMARY, TargetSessionAttrs.STANDBY


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1", True),
        ("select*from t", True),
        (" ((VALUES (1)))", True),
        ("Table tenants", True),
        ("/* DROP */\nWITH x AS (SELECT 1) TABLE x", True),
        ("-- DELETE '\r(-- it\nTABLE(t)", True),
        ("SELECTS 1", False),
        ("select$ 1", False),
        ("-- SELECT\nDELETE FROM t", False),
        ("/* SELECT */ DO $$ $$", False),
        ("/* never closed SELECT 1", False),
        ("-- SELECT 1", False),
        ("", False),
        (" ; SELECT 1", False),
        ("'SELECT'", False),
        ("DO SELECT", False),
    ],
)
def test_statement_is_a_question_by_its_first_word(statement: str, *, expected: bool) -> None:
    assert is_question(statement) is expected


@pytest.mark.parametrize(
    "text", ["questions.sql", "select.sql", "with-limits.sql", "values/1.sql", "select_2", "table1"]
)
def test_name_of_a_file_is_told_from_a_statement(text: str) -> None:
    assert is_question(text) == (text in {"select.sql", "with-limits.sql", "values/1.sql"})


@pytest.mark.parametrize(
    ("columns", "as_json", "problem"),
    [
        (["a", "b"], True, None),
        (["a", "a"], False, None),
        (["a", "b", "a"], True, "got a twice; use AS"),
        ([], False, "got one that returns none"),
        ([], True, "got one that returns none"),
    ],
)
def test_columns_have_different_names_in_json_objects(
    columns: list[str], *, as_json: bool, problem: str | None
) -> None:
    found = column_problem(columns, as_json=as_json)
    assert (found is None) == (problem is None)
    assert (problem or "") in (found or "")


def test_bounded_statement_has_the_statement_on_lines_of_its_own() -> None:
    text = bounded("SELECT 1 AS a -- one\n ;; \n", 2, as_json=False, row_count=3, byte_count=9)
    assert "FROM (\nSELECT 1 AS a -- one\n        ) AS answer (c1, c2) LIMIT 3" in text
    assert "ARRAY[answer.c1::pg_catalog.text, answer.c2::pg_catalog.text] AS cells" in text
    assert "byte_count <= 9 " in text
    assert ") AS answer LIMIT 1" in bounded("SELECT 1", 1, as_json=True, row_count=1, byte_count=1)
    assert without_end("SELECT ';' ; ") == "SELECT ';'"


def address(hosts: str, options: str = "") -> ShardAddress:
    return ShardAddress("shard-1", f"postgresql://worker:secret@{hosts}/db{options}")


@pytest.mark.parametrize(
    ("named", "standby", "target", "expected"),
    [
        (address("a"), None, PRIMARY, ["a/db"]),
        (address("a", "?target_session_attrs=any"), None, PRIMARY, ["a/db?target_session_attrs=any"]),
        (address("a,b"), None, PRIMARY, ["a,b/db?target_session_attrs=primary"]),
        (address("a,b"), None, STANDBY, ["a,b/db?target_session_attrs=standby"]),
        (
            address("a", "?target_session_attrs=read-write&sslmode=require"),
            address("b"),
            PRIMARY,
            ["a/db?target_session_attrs=primary&sslmode=require", "b/db?target_session_attrs=primary"],
        ),
        (
            address("a"),
            address("b:5433"),
            STANDBY,
            ["b:5433/db?target_session_attrs=standby", "a/db?target_session_attrs=standby"],
        ),
    ],
)
def test_reader_asks_a_server_of_the_wanted_kind(
    named: ShardAddress, standby: ShardAddress | None, target: TargetSessionAttrs, expected: list[str]
) -> None:
    found = reader_addresses(named, standby, target, "reader", None)
    assert [one.connection_string for one in found] == [f"postgresql://reader@{one}" for one in expected]


@pytest.mark.parametrize(
    ("named", "username", "message"),
    [
        (address("a"), "reader", "expected a shard with a standby, got one without"),
        (ShardAddress("shard-1", "", refusal="host x is not allowed"), "reader", "host x is not allowed"),
        (address("a,b"), "a\nb", "user: expected no control characters"),
    ],
)
def test_reader_asks_no_shard_without_a_usable_address(named: ShardAddress, username: str, message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        reader_addresses(named, None, STANDBY, username, None)
