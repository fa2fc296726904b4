"""Ask a shard: the connection, the transaction and the checks of one question."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

import asyncpg
import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.connector import ShardConnection
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import DEFAULT_HOME, QUERIES
from simplu_worker.shards.postgres.sqlstate import is_no_answer
from simplu_worker.shards.postgres.statement_timeouts import DEFAULT_TIMEOUTS, Isolation
from simplu_worker.shards.questions.statement import bounded, column_problem
from simplu_worker.shards.types import ShardUnavailableError

BYTES_MAX: Final = 16 * 1024 * 1024  # of a shard's answer: one document, of up to 10 MiB, fits
ROWS_MAX: Final = 1000  # of a shard's answer, unless a person gives another number
REPLY_GRACE_S: Final = 5.0  # for a server that ends a statement by its own timeout
# In one message, so that one server of a pooler runs both. Whatever a function has locked is free then.
END: Final = "ROLLBACK; SELECT pg_catalog.pg_advisory_unlock_all()"
STOP_S: Final = 2.0  # for servers to stop their statements when the command is interrupted


class QuestionFailedError(PermanentError):
    """The shard answered with an error, or may not be asked in this way; the text is for the person who asked."""


class ShardQuestion(msgspec.Struct, frozen=True):
    """A statement, and the bounds of its answer. The policies show the rows of *tenant_id* to its readers."""

    statement: str
    as_json: bool = False
    row_limit: int = ROWS_MAX
    byte_limit: int = BYTES_MAX
    timeout_s: float = 30.0
    tenant_id: str | None = None


class ShardAnswer(msgspec.Struct, frozen=True):
    """The first rows of a shard, as texts; of a question *as_json*, one JSON object each.

    *bounded_role* is the reader's where the policies show it the rows of one tenant at most, and the question names
    none.
    """

    columns: list[str]
    rows: list[list[str | None]]
    is_over_rows: bool
    is_over_bytes: bool
    bounded_role: str | None


async def ask_shard(addresses: Sequence[ShardAddress], question: ShardQuestion) -> ShardAnswer:
    """Ask the first of *addresses* that has a server of the wanted kind.

    A cancelled call has the server stop the statement. Raises `ShardUnavailableError`, the first address's, and
    `QuestionFailedError`.
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
        async with (
            pool.transaction(is_rehearsal=True, isolation=Isolation.ONE_MOMENT) as connection,
            _ended(connection),
        ):
            return await _ask(connection, question)


@contextlib.asynccontextmanager
async def _ended(connection: ShardConnection) -> AsyncIterator[None]:
    """End the question in the block, and raise an error of its statement in the server's words."""
    try:
        yield
    except asyncpg.PostgresError as exc:
        if is_no_answer(exc.sqlstate or ""):
            raise
        await connection.send(END)
        raise QuestionFailedError(_describe(exc)) from exc
    except QuestionFailedError:
        await connection.send(END)
        raise
    await connection.send(END)


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
