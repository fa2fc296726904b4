"""`shards query`: one statement on all shards, as a role that can only read."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Final

import msgspec

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.bulkheads import translate
from simplu_worker.commands import EXIT_DONE, EXIT_FAILED
from simplu_worker.commands.output import TABLE_MAX, print_note, print_table, shorten
from simplu_worker.commands.running import known_shard, parse_tenant_id
from simplu_worker.config.settings import Settings
from simplu_worker.errors import ConfigurationError, PermanentError, UsageError, WorkerError
from simplu_worker.shards import questions
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.connector import TargetSessionAttrs
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.timing.waits import run_at_once
from simplu_worker.vocabulary import Absence, TargetKind

CELL_MAX: Final = 200  # characters of a cell in a table


class RowPrinter:
    """Prints rows on stdout, each with its shard: JSON Lines at once, a table of the first ones at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._first: tuple[str, list[str]] | None = None  # the first shard, and its columns
        self._rows: list[tuple[str, ...]] = []  # of the table
        self._count = 0

    def add(self, shard_id: str, answer: questions.ShardAnswer) -> None:
        """Print or keep the rows of a shard. Raises `PermanentError` for other columns than before in a table."""
        if self._as_json:
            shard = msgspec.json.encode(shard_id).decode()
            # A value of the type json may have line breaks.
            rows = (msgspec.json.format(row[0] or "", indent=-1) for row in answer.rows)
            sys.stdout.buffer.write("".join(f'{{"shardId":{shard},"row":{row}}}\n' for row in rows).encode())
            sys.stdout.buffer.flush()
            return
        first_shard, columns = self._first = self._first or (shard_id, answer.columns)
        if columns != answer.columns:
            raise PermanentError(
                f"expected the columns of shard {first_shard}, {', '.join(columns)}, "
                f"got {', '.join(answer.columns)}; name the columns in place of *"
            )
        self._count += len(answer.rows)
        for row in answer.rows[: TABLE_MAX - len(self._rows)]:
            self._rows.append((shard_id, *(shorten(cell or "", CELL_MAX) for cell in row)))

    def finish(self) -> bool:
        """Print the table, if it is one; return whether all rows are printed."""
        if self._first is not None:
            print_table(["shard", *self._first[1]], sorted(self._rows, key=itemgetter(0)))
        if self._count > len(self._rows):
            print_note(f"and {self._count - len(self._rows)} more; --json prints all")
        return self._count == len(self._rows)


SHARDS_AT_ONCE: Final = 8  # each has an answer of up to BYTES_MAX in memory
NO_ROWS: Final = "no rows"  # the last notes
SHOWN_MAX: Final = 60  # characters


class Asked(msgspec.Struct, frozen=True):
    """Which shards are asked, and which of their servers. *wants_all*: no limit of rows was given."""

    shard_ids: tuple[str, ...] = ()
    tenant: tuple[str, str] | None = None
    target: TargetSessionAttrs = TargetSessionAttrs.PRIMARY
    wants_all: bool = True


def read_statement(text: str) -> str:
    """Return the statement that *text* is, or that the file has, whose name may end in .sql. Raises UsageError."""
    expected = f"expected a statement that begins with {', '.join(questions.KEYWORDS[:-1])} or {questions.KEYWORDS[-1]}"
    if questions.is_question(text) and not text.endswith(".sql"):
        return text
    try:
        statement = Path(text).read_text("utf-8-sig")
    except (OSError, ValueError):
        shown = repr(scrub_text(shorten(text, SHOWN_MAX)))
        raise UsageError(f"{expected}, or a readable file of UTF-8 with one, got {shown}") from None
    if not questions.is_question(statement):
        raise UsageError(f"{expected} in {text}, got {scrub_text(shorten(statement, SHOWN_MAX))!r}")
    return statement


async def query_shards(settings: Settings, question: questions.ShardQuestion, asked: Asked, *, as_json: bool) -> int:
    """Ask the shards, and print their rows as they answer, then each note once with its shards.

    Return 1 if rows are missing. Raises `BrokenPipeError` when nobody reads the rows any more.
    """
    reader = _reader_of(settings)
    tenant_id = None if asked.tenant is None else parse_tenant_id(*asked.tenant)
    question = msgspec.structs.replace(question, as_json=as_json, tenant_id=tenant_id)
    printer, turn = RowPrinter(as_json=as_json), asyncio.Lock()
    notes: defaultdict[str, list[str]] = defaultdict(list)
    incomplete: set[str] = set()
    async with open_shards(settings) as shards:

        async def ask(shard: ShardAddress) -> None:
            shard_id, string = shard.shard_id, shard.standby_string
            standby = None if string is None else msgspec.structs.replace(shard, connection_string=string)
            try:
                with translate(TargetKind.SHARD, shard_id, "query", WorkerError, OSError):
                    addresses = questions.reader_addresses(shard, standby, asked.target, *reader)
                    answer = await questions.ask_shard(addresses, question)
                    async with turn:  # in a thread, as stdout may wait for a person for long
                        await asyncio.to_thread(printer.add, shard_id, answer)
            except WorkerError as exc:
                incomplete.add(shard_id)
                notes[f"{NO_ROWS}: {scrub_text(shard.without_name(str(exc)))}"].append(shard_id)
                return
            if answer.is_over_bytes or (answer.is_over_rows and asked.wants_all):
                incomplete.add(shard_id)
            for note in _notes_on(answer, question):
                notes[note].append(shard_id)

        await run_at_once(ask, await _choose_shards(shards, asked, tenant_id), most=SHARDS_AT_ONCE)
    has_printed_all = printer.finish()
    for note, shard_ids in sorted(notes.items(), key=lambda one: one[0].startswith(NO_ROWS)):
        print_note(f"{', '.join(sorted(shard_ids))}: {note}")
    return EXIT_DONE if has_printed_all and not incomplete else EXIT_FAILED


def _notes_on(answer: questions.ShardAnswer, question: questions.ShardQuestion) -> Iterator[str]:
    if answer.is_over_rows:
        yield f"more than {question.row_limit} rows, the --limit"
    if answer.is_over_bytes:
        yield f"more than {questions.BYTES_MAX // 1024**2} MiB of rows"
    if answer.bounded_role is not None:
        yield (
            f"the role {answer.bounded_role} sees no more than one tenant's rows of resources, by the policies "
            "(docs/reading.md)"
        )


def _reader_of(settings: Settings) -> tuple[str, str | None]:
    if settings.reader_username is None:
        raise ConfigurationError(
            "READER_USERNAME: expected the role that asks shards, got nothing; make one that can only read "
            "(docs/reading.md), and set READER_USERNAME and READER_PASSWORD"
        )
    password = settings.reader_password
    return settings.reader_username, None if password is None else password.get_secret_value()


async def _choose_shards(shards: Shards, asked: Asked, tenant_id: str | None) -> list[ShardAddress]:
    if tenant_id is not None:
        found = await shards.directory.find(tenant_id)
        if isinstance(found, Absence):
            raise PermanentError(f"expected a tenant that lives on a shard, got {tenant_id}, which does not: {found}")
        return [found]
    known = await shards.locator.list_shards()
    return [known_shard(known, one) for one in dict.fromkeys(asked.shard_ids)] if asked.shard_ids else known
