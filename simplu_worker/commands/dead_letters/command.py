"""`dead-letters list`, `dead-letters replay` and `dead-letters discard`."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from rich.text import Text

from simplu_worker.commands.output import StderrNarration, print_json, print_note, print_table, shorten
from simplu_worker.config.settings import Settings
from simplu_worker.dead_letters.plan import DeadLetterFilter
from simplu_worker.dead_letters.service import (
    ApplyOptions,
    DeadLetterService,
    LettersAction,
    ListOptions,
    ReplayOutcome,
    ReplayStatus,
)
from simplu_worker.status.guard import COMMAND, Acted, Actor, logged_action

ERROR_SHOWN_LENGTH: Final = 80
RECORD_SHOWN_LENGTH: Final = 200
STYLES: Final = {ReplayStatus.SENT: "green", ReplayStatus.WOULD_SEND: "", ReplayStatus.LEFT: "red"}


async def list_dead_letters(
    settings: Settings, filters: DeadLetterFilter, options: ListOptions, *, as_json: bool
) -> int:
    """Print dead letters. Return 1 if others may match: hidden, behind those that were read, or beyond the room."""
    answer = await DeadLetterService(settings).list(filters, options, StderrNarration())
    if as_json:
        print_json(answer)
    else:
        _print_rows(answer["letters"], with_record=options.records)
        _print_foreign(answer["notLetters"])
    count = len(answer["letters"])
    if answer["isCut"]:
        more = "see --limit" if count == options.limit else "narrow the time with --since and --until"
        print_note(f"the queue has more dead letters than these {count}; {more}")
    is_whole = count == options.limit or not (answer["isCut"] or answer["hidden"] or answer["behind"])
    return 0 if is_whole else 1


async def replay_dead_letters(
    settings: Settings, filters: DeadLetterFilter, options: ApplyOptions, *, as_json: bool
) -> int:
    """Replay dead letters, or print the plan. Return 1 unless all go."""
    with _logged(LettersAction.REPLAY, filters, options, force=options.force) as acted:
        acted.answer = answer = await DeadLetterService(settings).replay(filters, options, StderrNarration())
    if as_json:
        print_json(answer)
    else:
        _print_outcomes(answer["letters"], options)
    return _status(answer, options)


async def discard_dead_letters(
    settings: Settings, filters: DeadLetterFilter, options: ApplyOptions, *, as_json: bool
) -> int:
    """Discard dead letters, or print the plan. Return 1 unless all that match go."""
    with _logged(LettersAction.DISCARD, filters, options) as acted:
        acted.answer = answer = await DeadLetterService(settings).discard(filters, options, StderrNarration())
    if as_json:
        print_json(answer)
    else:
        rows = [(one["count"], one["reason"], _tenant_cell(one)) for one in answer["letters"]]
        print_table(("letters", "reason", "tenant"), rows)
        if options.apply:
            print_note(f"{answer['discarded']} dead letters were deleted, with their records")
        else:
            print_note("nothing was deleted; --apply deletes these letters, and their records are then nowhere else")
    return _status(answer, options)


def _status(answer: Mapping[str, Any], options: ApplyOptions) -> int:
    return 1 if answer["left"] or answer["hidden"] or (options.apply and answer["behind"]) else 0


def _logged(
    action: LettersAction, filters: DeadLetterFilter, options: ApplyOptions, **asked: bool
) -> AbstractContextManager[Acted]:
    if not options.apply:
        return nullcontext(Acted())
    actor = Actor(COMMAND, socket.gethostname())
    return logged_action(action, actor, filters.facts() | {"limit": options.limit} | asked)


def _print_rows(rows: Sequence[Mapping[str, Any]], *, with_record: bool) -> None:
    columns = ["failed", "reason", "source", "position", "tenant", "request id", "bytes", "error"]
    print_table(
        [*columns, "record"] if with_record else columns, (list(_cells(row, with_record=with_record)) for row in rows)
    )
    counts = Counter(row["reason"] for row in rows)
    print_note(", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "no dead letters")


def _cells(row: Mapping[str, Any], *, with_record: bool) -> Iterator[object]:
    position = row.get("streamShard"), row["sequenceNumber"], row["sourceMessageId"]
    yield row["failedAt"].isoformat(timespec="seconds")
    yield row["reason"]
    yield f"{row['source']} {row['name']}"
    yield " ".join(part for part in position if part)
    yield _tenant_cell(row)
    yield row["requestId"]
    yield row["recordBytes"]
    yield shorten(row["error"], ERROR_SHOWN_LENGTH)
    if with_record:
        yield shorten(row.get("record") or row.get("recordBase64") or "", RECORD_SHOWN_LENGTH)


def _print_foreign(foreign: Sequence[Mapping[str, str]]) -> None:
    for one in foreign:
        print_note(f"message {one['messageId']} is no dead letter: {one['problem']}")


def _tenant_cell(row: Mapping[str, Any]) -> str:
    return " ".join(part for part in (row["businessId"], row["locationId"]) if part)


def _print_outcomes(outcomes: Sequence[ReplayOutcome], options: ApplyOptions) -> None:
    alike = Counter((outcome.status, outcome.source, outcome.name, outcome.reason, outcome.why) for outcome in outcomes)
    details = {(outcome.reason, outcome.why): outcome.detail for outcome in reversed(outcomes)}
    rows = [
        (
            count,
            reason,
            " ".join(filter(None, (source, name))),
            Text(status, STYLES[status]),
            why,
            details[reason, why],
        )
        for (status, source, name, reason, why), count in alike.items()
    ]
    print_table(("letters", "reason", "source", "outcome" if options.apply else "plan", "why", ""), rows)
    if not options.apply:
        can_send = any(outcome.status is ReplayStatus.WOULD_SEND for outcome in outcomes)
        print_note(
            "nothing was sent; --apply sends them" if can_send else "nothing was sent, nor would --apply send any"
        )
