"""The SQL files: named, with `$n` arguments only, and never about a tenant that is not named (invariants 6 and 7)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import simplu_worker
from simplu_worker.shards.queries import BUSINESS_TYPES, MIGRATIONS, QUERIES, SCHEMA_VERSION, named_queries

PACKAGE = Path(simplu_worker.__file__).parent
SQL = PACKAGE / "shards" / "sql"

# Queries about more than the tenants they are given, each with the reason why it must be.
NOT_OF_ONE_TENANT = {
    "first_tenant_at": "the time alone, before which nothing was applied",
    "count_tenants": "the count alone, for capacity",
    "find_deletions": "what a shard has to delete, whosever it is",
    "find_locations": "contract §4: `destroy_all` is for every location of a business",
    "find_operation_of_any_tenant": "contract §9: without the tenant all shards are asked",
    "forget_operations": "rows go by their age, whosever they are",
    "list_tenants": "contract §1: `tenants list`",
}

# What names the tenant in a statement on each table.
NAMING = {
    "tenants": re.compile(
        r"INSERT INTO tenants \(id,|\b(tenants\.)?id = (ANY\()?(\$\d|wave\.tenant_id|sent\.id)|= tenants\.id\b"
    ),
    "resources": re.compile(r"INSERT INTO resources \(id,|\b(resources\.)?id = (\$\d|wave\.tenant_id|tenants\.id)"),
    "operations": re.compile(
        r"INSERT INTO operations \(\s*tenant_id,|USING \(tenant_id, request_id\)"
        r"|\b(operations\.)?tenant_id = (\$\d|wave\.tenant_id|sent\.tenant_id|tenants\.id)"
    ),
}
TABLE = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE|USING|TABLE|TRUNCATE)\s+(?:ONLY\s+)?(\w+)")
STATEMENT_METHODS = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "fetchmany", "prepare", "cursor"}


def without_comments(sql: str) -> str:
    """Return *sql* without `--` comments."""
    return re.sub(r"--.*$", "", sql, flags=re.MULTILINE)


def test_named_queries_are_split_at_their_names() -> None:
    """What is before the first name belongs to nobody."""
    text = "-- About.\n\n-- name: one\n-- Says one.\nSELECT 1;\n\n-- name: two\nSELECT 2;\n"

    assert named_queries(text) == {"one": "-- Says one.\nSELECT 1;", "two": "SELECT 2;"}
    assert named_queries("-- nothing yet\n") == {}


def test_every_query_file_holds_named_queries_of_its_own() -> None:
    """No name twice, nothing nameless but comments, and all of them are known."""
    names: list[str] = []
    for file in sorted((SQL / "queries").iterdir()):
        text = file.read_text()
        queries = named_queries(text)
        assert file.suffix == ".sql"
        assert queries, file.name
        assert without_comments(text.partition("-- name:")[0]).strip() == "", file.name
        names += re.findall(r"^--\s*name:\s*(\w+)\s*$", text, re.MULTILINE)
    assert sorted(names) == sorted(QUERIES)


@pytest.mark.parametrize("name", QUERIES)
def test_query_is_one_statement_with_numbered_arguments(name: str) -> None:
    """From $1 on without a gap; no other way to put a value in, no quote that a format could fill."""
    sql = without_comments(QUERIES[name]).strip()
    numbers = {int(number) for number in re.findall(r"\$(\d+)", sql)}

    assert sql.endswith(";")
    assert sql.count(";") == 1
    assert numbers == set(range(1, len(numbers) + 1))
    assert not re.search(r"%[sd(]|\{\w*\}|\|\|\s*\$|\bEXECUTE\b", re.sub(r"'[^']*'", "''", sql))


@pytest.mark.parametrize("name", QUERIES)
def test_query_names_the_tenant_when_it_is_about_tenants_rows(name: str) -> None:
    """Invariant 7: every table of tenants' rows in it is narrowed to a tenant that is handed in or locked."""
    sql = without_comments(QUERIES[name])
    tables = NAMING.keys() & set(TABLE.findall(sql))
    unnamed = {table for table in tables if not NAMING[table].search(sql)}

    assert unnamed == set() or name in NOT_OF_ONE_TENANT


def test_exceptions_are_queries_that_exist() -> None:
    """The list above stays short and true."""
    assert NOT_OF_ONE_TENANT.keys() <= QUERIES.keys()


def statements_of(file: Path) -> list[str]:
    """Return the first argument, as Python text, of every call in *file* that may run SQL."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call.args[0])
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in STATEMENT_METHODS and call.args
    ]


def test_no_query_is_built_in_python() -> None:
    """Invariant 6: what is run comes from the SQL files, or is a constant of the door to Postgres itself."""
    allowed = {
        "schema.py": {"statements"},  # migrations and business types, from their files
        "connecting.py": {"query"},  # of the SQL files, prepared without a name
        "pools.py": {"self._deadlines.begin", "'ROLLBACK'", "'COMMIT'", "'SELECT 1'"},
    }
    inside = [path for path in PACKAGE.rglob("*.py") if "local" not in path.relative_to(PACKAGE).parts]
    odd = {
        f"{file.name}: {statement}"
        for file in inside
        for statement in statements_of(file)
        if not statement.startswith("QUERIES[") and statement not in allowed.get(file.name, set())
    }

    assert sum(len(statements_of(file)) for file in inside) > 10
    assert odd == set()


def test_migrations_are_numbered_without_a_gap() -> None:
    """Forward only, and the last one is the version of the schema."""
    versions = [version for version, _, _ in MIGRATIONS]

    assert versions == list(range(1, SCHEMA_VERSION + 1))
    assert len(list((SQL / "migrations").iterdir())) == len(versions)


@pytest.mark.parametrize("name", BUSINESS_TYPES)
def test_business_type_has_its_row_views_and_index(name: str) -> None:
    """Contract §10: each in one file, and its views show nobody else's rows by mistake of the type."""
    sql = without_comments(BUSINESS_TYPES[name])
    views = re.findall(r"CREATE VIEW (\w+) AS\s+SELECT id, \"resourceId\".*?;", sql, re.DOTALL)

    assert f"VALUES ('{name}'," in sql
    assert len(views) >= 3
    assert all(view.startswith(f"{name}_") for view in views)
    assert set(re.findall(r'"businessType" = \'(\w+)\'', sql)) == {name}
    assert f"CREATE INDEX resources_{name} ON resources (id," in sql


def test_business_types_are_those_of_the_contract() -> None:
    """A new type is a new file."""
    assert set(BUSINESS_TYPES) == {"dental", "gym", "hotel"}
