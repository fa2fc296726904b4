"""The statement of a question: what may be asked, where, and the statement that bounds its answer. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.address import ShardAddress, hosts_of
from simplu_worker.shards.postgres.connector import TargetSessionAttrs

KEYWORDS: Final = ("SELECT", "VALUES", "TABLE", "WITH")
_BLANKS: Final = " \t\n\r\f\v"  # PostgreSQL manual, lexical structure
_COMMENT: Final = re.compile(r"--[^\n\r]*")
_COMMENT_BOUND: Final = re.compile(r"/\*|\*/")
_NOT_OF_WORD: Final = re.compile(r"[^\w$]")


def is_question(text: str) -> bool:
    """Return whether *text* begins, after comments and opening parentheses, as a statement that only reads."""
    return first_word(text).upper() in KEYWORDS


def first_word(statement: str) -> str:
    """Return the first word behind blanks, comments and opening parentheses; "" where there is none."""
    while True:
        statement = statement.lstrip(f"{_BLANKS}(")
        if (comment := _COMMENT.match(statement)) is not None:
            statement = statement[comment.end() :]
        elif statement.startswith("/*"):
            statement = _behind_comment(statement)
        else:
            return _NOT_OF_WORD.split(statement, maxsplit=1)[0]


def _behind_comment(text: str) -> str:
    """Return the rest of *text* behind the comment at its beginning, which may have others in it."""
    depth = 0
    for bound in _COMMENT_BOUND.finditer(text):
        depth += 1 if bound[0] == "/*" else -1
        if not depth:
            return text[bound.end() :]
    return ""


def column_problem(columns: Sequence[str], *, as_json: bool) -> str | None:
    """Return why rows with *columns* cannot be shown; *as_json* each row is an object."""
    if not columns:
        return "expected a statement that returns columns, got one that returns none"
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if as_json and twice:
        return f"expected columns with different names, as each row is a JSON object, got {twice[0]} twice; use AS"
    return None


def bounded(statement: str, column_count: int, *, as_json: bool, row_count: int, byte_count: int) -> str:
    """Return the statement that gives the first rows of *statement*, each as one array `cells` of texts.

    The array is null from the row on with which all have more than *byte_count* bytes. *as_json* its only text is the
    row as a JSON object. The rows are in the order of *statement*: neither LIMIT nor a window without an order of its
    own changes it. The bounds are no parameters, as a plan for any LIMIT reads more than that for a small one.
    """
    names = [f"c{number}" for number in range(1, column_count + 1)]
    if as_json:
        cells, answer = "pg_catalog.row_to_json(answer.*)::pg_catalog.text", "answer"
    else:
        cells = ", ".join(f"answer.{name}::pg_catalog.text" for name in names)
        answer = f"answer ({', '.join(names)})"
    return f"""
SELECT CASE WHEN sized.byte_count <= {byte_count} THEN sized.cells END AS cells
FROM (
    SELECT
        limited.cells,
        pg_catalog.sum(pg_catalog.pg_column_size(limited.cells)) OVER (ROWS UNBOUNDED PRECEDING) AS byte_count
    FROM (
        SELECT ARRAY[{cells}] AS cells FROM (
{without_end(statement)}
        ) AS {answer} LIMIT {row_count}
    ) AS limited
) AS sized
"""  # noqa: S608  # the text of a person, who may run it as it is


def without_end(statement: str) -> str:
    """Return *statement* without semicolons at its end."""
    return statement.rstrip(f"{_BLANKS};")


def reader_addresses(
    named: ShardAddress,
    standby: ShardAddress | None,
    target: TargetSessionAttrs,
    username: str,
    password: str | None,
) -> list[ShardAddress]:
    """Return where a reader finds the primary or the standby of a shard, the likelier address first.

    A standby may have taken the primary's place, so each server has to be of the wanted kind; but the only one that is
    known is its shard's primary. Raises `PermanentError` if no standby is known, or the address may not be used.
    """
    if named.refusal is not None:
        raise PermanentError(named.refusal)
    addresses = [address for address in (named, standby) if address is not None]
    if sum(len(hosts_of(address.connection_string)) for address in addresses) == 1:
        if target is TargetSessionAttrs.STANDBY:
            raise PermanentError(
                "expected a shard with a standby, got one without: neither its connection string nor "
                "replicaConnectionString in the map has another host; ask it without --on standby"
            )
        return [named.for_reader(username, password).validate(())]
    if target is TargetSessionAttrs.STANDBY:
        addresses.reverse()
    return [address.for_reader(username, password, target=target).validate(()) for address in addresses]
