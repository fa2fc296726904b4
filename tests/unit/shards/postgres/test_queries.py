from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import simplu_worker
from simplu_worker.shards.postgres.queries import SEPARATOR, at_home, pack_columns, quote_name, read_queries
from simplu_worker.shards.schema.schema_check import MIGRATIONS, SCHEMA_VERSION
from simplu_worker.transfers import QUERIES

PACKAGE = Path(simplu_worker.__file__).parent
SQL = PACKAGE / "shards" / "sql"
QUERY_FILES = sorted(PACKAGE.glob("*/sql/queries/*.sql"))

STATEMENT_METHODS = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "fetchmany", "prepare", "cursor"}
MAY_CALL = re.compile(rf"\.\s*(?:{'|'.join(STATEMENT_METHODS)})\b")  # parsing a source costs more than searching it


def without_comments(sql: str) -> str:
    return re.sub(r"--.*$", "", sql, flags=re.MULTILINE)


def test_queries_are_split_at_their_names() -> None:
    text = "-- About.\n\n-- name: one\n-- Returns one.\nSELECT 1;\n\n-- name: two\nSELECT 2;\n"

    assert read_queries([text]) == {"one": "SELECT 1;", "two": "SELECT 2;"}
    assert read_queries(["-- nothing yet\n"]) == {}


def test_queries_include_the_fragments_of_all_files() -> None:
    user = "-- name: one\nSELECT :two AS two, '2'::text, to_char(now(), 'HH24:MI'), :two;\n"
    owner = "-- About.\n\n-- fragment: two\n-- Two of them.\n1 + 1\n\n-- name: three\nSELECT 3;\n"

    assert read_queries([user, owner]) == {
        "one": "SELECT 1 + 1 AS two, '2'::text, to_char(now(), 'HH24:MI'), 1 + 1;",
        "three": "SELECT 3;",
    }
    with pytest.raises(KeyError, match="two"):
        read_queries([user])


def test_every_query_file_holds_queries_and_fragments_of_its_own() -> None:
    names: list[tuple[str, str]] = []
    included: set[str] = set()
    for file in QUERY_FILES:
        text = file.read_text()
        assert file.suffix == ".sql"
        assert without_comments(re.split("-- (?:name|fragment):", text)[0]).strip() == "", file.name
        names += re.findall(r"^--\s*(name|fragment):\s*(\w+)\s*$", text, re.MULTILINE)
        included.update(re.findall(r"(?<!:):([a-z]\w*)", without_comments(text)))
    assert sorted(name for kind, name in names if kind == "name") == sorted(QUERIES)
    assert sorted(name for kind, name in names if kind == "fragment") == sorted(included)


def test_every_query_is_one_statement_with_numbered_arguments() -> None:
    for name, text in QUERIES.items():
        sql = without_comments(text).strip()
        numbers = {int(number) for number in re.findall(r"\$(\d+)", sql)}

        assert sql.endswith(";"), name
        assert sql.count(";") == 1, name
        assert numbers == set(range(1, len(numbers) + 1)), name
        assert not re.search(r"%[sd(]|\{\w*\}|\|\|\s*\$|\bEXECUTE\b", re.sub(r"'[^']*'", "''", sql)), name


def statements_of(file: Path) -> list[str]:
    text = file.read_text()
    if not MAY_CALL.search(text):
        return []
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call.args[0])
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in STATEMENT_METHODS and call.args
    ]


def test_no_query_is_built_in_python() -> None:
    allowed = {
        # Migrations, from their files; views, which type_files.py makes of checked files.
        "shards/schema/schema_check.py": {"without_concurrently(migration.text)", "statement"},
        "shards/schema/upgrade.py": {"step.text"},  # migrations
        # Scripts, from their files too.
        "transfers/adoption/adopter.py": {
            "ADOPTION['adoption_log']",
            "ADOPTION[layout]",
            "ADOPTION['old_rows']",
            "ADOPTION['watch']",
            "ADOPTION['lock_old_table']",
            "ADOPTION['swap']",
        },
        # Around queries of a person, on a database that is no shard: importing/queries.py has the rules.
        "transfers/importing/source.py": {
            "statement.sql",
            "begin(connection.get_server_version().major)",
            "f\"SET TRANSACTION SNAPSHOT '{snapshot_id}'\"",  # of digits, as no parameter is allowed there
            "DESCRIBE_SOURCE",
            "EXPORT_SNAPSHOT",
            "IDENTIFY",
            "MAY_IDENTIFY",
            "'SAVEPOINT described'",
            "'ROLLBACK TO SAVEPOINT described'",
            "describe_query(query)",
            "size",  # of a page of a cursor
        },
        # The same: the statements of a mapping, and the table of positions there; exporting/rules.py has them.
        "transfers/exporting/target.py": {
            "sql",
            "HAS_POSITIONS",
            "MAKE_POSITIONS",
            "READ_POSITIONS",
            "TAKE_POSITION",
            "LOCK_POSITION",
            "NOTE_POSITION",
            "'SELECT pg_catalog.pg_is_in_recovery()'",
            "'SAVEPOINT described'",
            "'ROLLBACK TO SAVEPOINT described'",
        },
        "shards/postgres/connector.py": {
            "query",  # of the SQL files, prepared without a name
            "at_home(query, self.home)",  # the same, for the schema of the shard's tables
            "statements",  # that begin and end transactions, and make settings
        },
        # Of a person, in a read-only transaction of a role that can only read: shards/questions has the rules.
        "shards/questions.py": {"question.statement", "text"},
        "shards/postgres/pool.py": {"query"},  # that counts: of the SQL files, given by the caller
        "shards/routing/shard_query.py": {"query"},  # of the SQL files, given by the caller
        "status/server.py": {"request"},  # prepares an HTTP answer
    }
    files = {file.relative_to(PACKAGE).as_posix(): file for file in PACKAGE.rglob("*.py")}
    found = [(name, statement) for name, file in files.items() for statement in statements_of(file)]
    odd = {
        f"{name}: {statement}"
        for name, statement in found
        if not statement.startswith("QUERIES[") and statement not in allowed.get(name, set())
    }

    assert len(found) > 10
    assert odd == set()


def test_migrations_are_numbered_without_a_gap() -> None:
    versions = [migration.version for migration in MIGRATIONS]

    assert versions == list(range(1, SCHEMA_VERSION + 1))
    assert len(list((SQL / "migrations").iterdir())) == len(versions)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT FROM public.tenants", 'SELECT FROM "it""s".tenants'),
        (
            "ALTER TABLE public.moves; SELECT public.simplu_f(a)",
            'ALTER TABLE "it""s".moves; SELECT "it""s".simplu_f(a)',
        ),
        (
            "SELECT 'public.tenants'::regclass, 'is public. Yes'",
            "SELECT '\"it\"\"s\".tenants'::regclass, 'is public. Yes'",
        ),
        ("SELECT republic.a, publics.b", "SELECT republic.a, publics.b"),
    ],
)
def test_sql_is_for_the_home_of_the_shard(sql: str, expected: str) -> None:
    assert at_home(sql, 'it"s') == expected
    assert at_home(sql, "public") is sql


@pytest.mark.parametrize("home", ["it's", "back\\slash"])
def test_home_is_refused_when_its_name_would_end_a_literal(home: str) -> None:
    with pytest.raises(ValueError, match="expected a schema without"):
        at_home("SELECT 'public.tenants'", home)


def test_name_is_quoted() -> None:
    assert quote_name('a"B') == '"a""B"'


# Much of what separators are made of, so that texts run into them.
texts = st.text(st.sampled_from(["\x1f", "\x1e", "0", "1", "a"]), max_size=5)


plain_texts = st.text(st.sampled_from(["\n", "0", "1", "a", "é"]), max_size=5)


def columns_of(column_texts: st.SearchStrategy[str], size: int) -> st.SearchStrategy[list[list[str]]]:
    return st.lists(st.lists(column_texts, min_size=size, max_size=size), min_size=1)


@pytest.mark.slow
@given(st.integers(1, 6).flatmap(lambda size: st.tuples(columns_of(texts, size), columns_of(plain_texts, size))))
def test_packed_columns_are_taken_apart_into_what_they_were(columns: tuple[list[list[str]], list[list[str]]]) -> None:
    separator, *joined = pack_columns(*columns)

    assert [text.split(separator) for text in joined] == [*columns[0], *columns[1]]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([["a", "b"], ["", "c"]], [SEPARATOR, f"a{SEPARATOR}b", f"{SEPARATOR}c"]),
        ([["one"]], [SEPARATOR, "one"]),
        ([[f"a{SEPARATOR}", "b"]], ["\x1f0\x1e", "a\x1f\x1f0\x1eb"]),
    ],
)
def test_packed_columns_have_the_usual_separator_unless_one_of_them_has_it(
    columns: list[list[str]], expected: list[str]
) -> None:
    assert pack_columns(columns) == expected
