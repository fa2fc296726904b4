"""Questions of people: one statement, asked of a shard as a role that may only read, with a bounded answer.

No text can tell what a statement does, for it may call any function. So these make it safe:

- The role is no superuser, does not replicate, signal sessions, reach the server's files or write our tables, and is no
  member of such a role (`inspect_reader`).
- The transaction is READ ONLY and always rolled back. Its first snapshot is taken before the statement, so that no
  function can make it a writing one.
- The statement is a subquery in a prepared one: the parser admits nothing there that writes, and no second statement.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

import asyncpg
import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.address import ShardAddress, hosts_of
from simplu_worker.shards.postgres.connector import ShardConnection, TargetSessionAttrs
from simplu_worker.shards.postgres.errors import is_no_answer
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import DEFAULT_HOME, QUERIES
from simplu_worker.shards.postgres.statement_timeouts import DEFAULT_TIMEOUTS, Isolation
from simplu_worker.shards.types import ShardUnavailableError

KEYWORDS: Final = ("SELECT", "VALUES", "TABLE", "WITH")
_BLANKS: Final = " \t\n\r\f\v"  # PostgreSQL manual, lexical structure
_QUESTION: Final = re.compile(
    rf"(?:[\s(]|--[^\n\r]*[\n\r]|/\*.*?\*/)*(?:{'|'.join(KEYWORDS)})(?![\w$])", re.DOTALL | re.IGNORECASE
)


def is_question(text: str) -> bool:
    """Return whether *text* begins, after comments and opening parentheses, as a statement that only reads."""
    return _QUESTION.match(text) is not None


def column_problem(columns: Sequence[str], *, as_json: bool) -> str | None:
    """Return why rows with *columns* cannot be shown; *as_json* each row is an object."""
    if not columns:
        return "expected a statement that returns columns, got one that returns none"
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if as_json and twice:
        return f"expected columns with different names, as each row is a JSON object, got {twice[0]} twice; use AS"
    return None


def bounded(statement: str, column_count: int, *, as_json: bool, row_count: int, byte_count: int) -> str:
    """Return the statement that gives the first rows of *statement* in its order, each as one array `cells` of texts.

    The array is null from the row on with which all have more than *byte_count* bytes. *as_json*: one JSON object a
    row. The bounds are no parameters, as a plan for any LIMIT reads more than that for a small one.
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
    named: ShardAddress, standby: ShardAddress | None, target: TargetSessionAttrs, username: str, password: str | None
) -> list[ShardAddress]:
    """Return where a reader finds the primary or the standby of a shard, the likelier address first.

    Raises `PermanentError` if no standby is known, or the address may not be used.
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


BYTES_MAX: Final = 16 * 1024 * 1024  # of a shard's answer: one document, of up to 10 MiB, fits
ROWS_MAX: Final = 1000  # of a shard's answer, unless a person gives another number
REPLY_GRACE_S: Final = 5.0  # for a server that ends a statement by its own timeout
STOP_S: Final = 2.0  # for servers to stop their statements when the command is interrupted


class QuestionFailedError(PermanentError):
    """The shard answered with an error, or may not be asked; the text is for the person who asked."""


class ShardQuestion(msgspec.Struct, frozen=True):
    """A statement, and the bounds of its answer. Policies show the rows of *tenant_id* to its readers."""

    statement: str
    as_json: bool = False
    row_limit: int = ROWS_MAX
    byte_limit: int = BYTES_MAX
    timeout_s: float = 30.0
    tenant_id: str | None = None


class ShardAnswer(msgspec.Struct, frozen=True):
    """The first rows of a shard, as texts.

    *bounded_role* is the reader's if policies bound it, and no tenant is named.
    """

    columns: list[str]
    rows: list[list[str | None]]
    is_over_rows: bool
    is_over_bytes: bool
    bounded_role: str | None


async def ask_shard(addresses: Sequence[ShardAddress], question: ShardQuestion) -> ShardAnswer:
    """Ask the first of *addresses* that has a server of the wanted kind; a cancelled call stops the statement there.

    Raises `ShardUnavailableError`, the first address's, and `QuestionFailedError`.
    """
    error: ShardUnavailableError | None = None
    for address in addresses:
        try:
            return await _ask_server(address, question)
        except ShardUnavailableError as exc:
            error = error or exc
    raise error or ValueError("expected an address")


async def _ask_server(address: ShardAddress, question: ShardQuestion) -> ShardAnswer:
    timeouts = msgspec.structs.replace(
        DEFAULT_TIMEOUTS,
        statement_s=question.timeout_s,
        reply_s=question.timeout_s + REPLY_GRACE_S,
        cancel_s=STOP_S,
        stop_s=STOP_S,
    )
    async with Pools(size=1, timeouts=timeouts) as pools:
        pool = pools.ensure_pool(address)
        async with pool.transaction(is_rehearsal=True, isolation=Isolation.ONE_MOMENT) as connection:
            try:
                return await _ask(connection, question)
            except asyncpg.PostgresError as exc:
                if is_no_answer(exc.sqlstate or ""):
                    raise
                raise QuestionFailedError(_describe(exc)) from exc


def _describe(exc: asyncpg.PostgresError) -> str:
    hint = "" if exc.hint is None else f"; {exc.hint}"
    return f"{exc.message} ({exc.sqlstate}){hint}"


async def _ask(connection: ShardConnection, question: ShardQuestion) -> ShardAnswer:
    reader = await connection.fetchrow(QUERIES["inspect_reader"])
    name, able = reader["name"], reader["able"]
    if able is not None:
        more = "which can do more" if able == name else f"which may become {able}, and that one can do more"
        raise QuestionFailedError(
            f"expected a role that can only read, got {name}, {more}; "
            "name one with SELECT alone in READER_USERNAME (docs/reading.md)"
        )
    if question.tenant_id is not None:
        await connection.fetchrow(QUERIES["name_tenant"], question.tenant_id)
    with connection.working_in(DEFAULT_HOME):  # `public` in the person's statement is what it is
        statement = await connection.prepare(question.statement, name="")
        columns = [attribute.name for attribute in statement.get_attributes()]
        problem = column_problem(columns, as_json=question.as_json)
        if statement.get_parameters():
            problem = "expected a statement without parameters, got one with $1; write the value"
        if problem is not None:
            raise QuestionFailedError(problem)
        text = bounded(
            question.statement,
            len(columns),
            as_json=question.as_json,
            row_count=question.row_limit + 1,
            byte_count=question.byte_limit,
        )
        found = await (await connection.prepare(text, name="")).fetch()
    rows = [row["cells"] for row in found[: question.row_limit] if row["cells"] is not None]
    is_over_bytes = len(rows) < min(len(found), question.row_limit)
    return ShardAnswer(
        columns,
        rows,
        is_over_rows=len(found) > question.row_limit and not is_over_bytes,
        is_over_bytes=is_over_bytes,
        bounded_role=name if reader["sees_one_tenant"] and question.tenant_id is None else None,
    )
