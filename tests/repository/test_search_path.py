"""The SQL files name the schema of every function, table and type: nothing is looked up in the search path.

What the server makes of them, operators too, is in tests/integration/schema/test_search_path.py.
"""

from __future__ import annotations

import re

import pytest

from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES, MIGRATIONS
from simplu_worker.shards.schema.type_files import view_statements
from simplu_worker.transfers import ADOPTION

BODY = re.compile(r"\$(\w*)\$.*?\$\1\$", re.DOTALL)
TEXT = re.compile(r"'(?:[^']|'')*'")
COMMENT = re.compile(r"--[^\n]*")
CLOSED = "SET search_path = pg_catalog, pg_temp"
# Known to the grammar, which names the schema itself; `unnest` too, of several arrays in FROM.
OF_GRAMMAR = {"any", "array", "coalesce", "extract", "greatest", "least", "nullif", "substring"}
TYPES_OF_GRAMMAR = {"bigint", "boolean", "integer", "numeric", "smallint"}

TEXTS = {
    **QUERIES,
    **{f"adoption/{name}": text for name, text in ADOPTION.items()},
    **{
        f"business_types/{name}": ";\n".join(view_statements(file.type, server_version=18))
        for name, file in BUSINESS_TYPES.items()
    },
    **{f"migrations/{one.name}": one.text for one in MIGRATIONS},
}


def code_of(sql: str) -> str:
    """Return *sql* without comments, texts, and the bodies of functions that have a search path of their own."""
    parts = re.split(r"(?=^CREATE (?:OR REPLACE )?FUNCTION)", COMMENT.sub("", sql), flags=re.MULTILINE)
    parts = [BODY.sub("", part, count=1) if CLOSED in part else part for part in parts]
    return TEXT.sub("''", "".join(parts))


def unqualified_calls(code: str) -> set[str]:
    calls = {match[1]: match for match in re.finditer(r"(?<![\w.\"])([a-z]\w*)\(", code)}
    several = not re.search(r"(?<![\w.])unnest\([^,()]*(?:\([^()]*\)[^,()]*)*\)", code)
    return calls.keys() - OF_GRAMMAR - ({"unnest"} if several else set())


def unqualified_tables(code: str) -> set[str]:
    made = set(re.findall(r"(\w+) AS (?:MATERIALIZED )?\(", code))
    named = re.findall(r"(?<!DISTINCT )\b(?:FROM|JOIN|INTO|UPDATE|USING|TABLE|VIEW) ([a-z]\w*)\b(?![.(])", code)
    return set(named) - made - {"unnest", "old_oid", "named"}


def test_sql_names_the_schema_of_all_that_it_uses() -> None:
    for name, text in TEXTS.items():
        code = code_of(text)

        assert unqualified_calls(code) == set(), name
        assert unqualified_tables(code) == set(), name
        assert set(re.findall(r"::([a-z]\w*)\b(?!\.)", code)) <= TYPES_OF_GRAMMAR, name
        assert not re.search(r"\bto_reg\w+\('[^.']*'", text), name


@pytest.mark.parametrize("name", [name for name in TEXTS if "/" in name])
def test_every_function_has_a_search_path_of_its_own(name: str) -> None:
    text = COMMENT.sub("", TEXTS[name])
    closed = re.findall(rf"^LANGUAGE \w+ [^\n]*{CLOSED}$", text, re.MULTILINE)
    parsed = re.findall(r"^LANGUAGE sql [^\n]*\n(?:RETURN|BEGIN ATOMIC)\b", text, re.MULTILINE)

    assert len(re.findall(r"\bCREATE (?:OR REPLACE )?FUNCTION\b", text)) == len(closed) + len(parsed)
