"""`dead-letters list`, `dead-letters replay` and `dead-letters discard`."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from simplu_worker.commands.output import Answer, Part, Table, print_note, shorten
from simplu_worker.config.settings import Settings
from simplu_worker.dead_letters import service
from simplu_worker.dead_letters.plan import LettersRequest
from simplu_worker.status.guard import COMMAND, Acted, Actor, logged_action

ERROR_SHOWN_LENGTH: Final = 80
RECORD_SHOWN_LENGTH: Final = 200


async def list_dead_letters(settings: Settings, request: LettersRequest) -> Answer:
    """Return dead letters; it fails if others may match: hidden, behind those that were read, or beyond the room."""
    answer = await service.DeadLetterService(settings).list(request, print_note)
    letters: list[dict[str, Any]] = answer["letters"]
    columns = ["failed", "reason", "source", "position", "tenant", "request id", "bytes", "error"]
    columns += ["record"] if request.records else []
    counts = Counter(row["reason"] for row in letters)
    is_full = len(letters) == request.limit
    more = "see --limit" if is_full else "narrow the time with --since and --until"
    parts: list[Part] = [
        Table(columns, (list(_cells(row, with_record=request.records)) for row in letters)),
        ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "no dead letters",
        *(f"message {one['messageId']} is no dead letter: {one['problem']}" for one in answer["notLetters"]),
        f"the queue has more dead letters than these {len(letters)}; {more}" if answer["isCut"] else None,
    ]
    is_whole = is_full or not (answer["isCut"] or answer["hidden"] or answer["behind"])
    return Answer(answer, parts, is_failed=not is_whole)


async def replay_dead_letters(settings: Settings, request: LettersRequest) -> Answer:
    """Replay dead letters, or return the plan; it fails unless all go."""
    with _logged(service.LettersAction.REPLAY, request) as acted:
        acted.answer = answer = await service.DeadLetterService(settings).replay(request, print_note)
    return Answer(answer, _describe_outcomes(answer["letters"], request), is_failed=_is_failed(answer, request))


async def discard_dead_letters(settings: Settings, request: LettersRequest) -> Answer:
    """Discard dead letters, or return the plan; it fails unless all that match go."""
    with _logged(service.LettersAction.DISCARD, request) as acted:
        acted.answer = answer = await service.DeadLetterService(settings).discard(request, print_note)
    rows = [(one["count"], one["reason"], _tenant_cell(one)) for one in answer["letters"]]
    note = (
        f"{answer['discarded']} dead letters were deleted, with their records"
        if request.apply
        else "nothing was deleted; --apply deletes these letters, and nothing else then has their records"
    )
    table = Table(("letters", "reason", "tenant"), rows)
    return Answer(answer, [table, note], is_failed=_is_failed(answer, request))


def _is_failed(answer: Mapping[str, Any], request: LettersRequest) -> bool:
    return bool(answer["left"] or answer["hidden"] or (request.apply and answer["behind"]))


def _logged(action: service.LettersAction, request: LettersRequest) -> AbstractContextManager[Acted]:
    if not request.apply:
        return nullcontext(Acted())
    return logged_action(action, Actor(COMMAND, socket.gethostname()), request.facts())


def _cells(row: Mapping[str, Any], *, with_record: bool) -> Iterator[object]:
    position = row.get("streamShard"), row["sequenceNumber"], row["sourceMessageId"]
    yield row["failedAt"]
    yield row["reason"]
    yield f"{row['source']} {row['name']}"
    yield " ".join(part for part in position if part)
    yield _tenant_cell(row)
    yield row["requestId"]
    yield row["recordBytes"]
    yield shorten(row["error"], ERROR_SHOWN_LENGTH)
    if with_record:
        yield shorten(row.get("record") or row.get("recordBase64") or "", RECORD_SHOWN_LENGTH)


def _tenant_cell(row: Mapping[str, Any]) -> str:
    return " ".join(part for part in (row["businessId"], row["locationId"]) if part)


def _describe_outcomes(outcomes: Sequence[service.ReplayOutcome], request: LettersRequest) -> list[Part]:
    alike = Counter((outcome.status, outcome.source, outcome.name, outcome.reason, outcome.why) for outcome in outcomes)
    details = {(outcome.reason, outcome.why): outcome.detail for outcome in reversed(outcomes)}
    rows = [
        (count, reason, " ".join(filter(None, (source, name))), status, why, details[reason, why])
        for (status, source, name, reason, why), count in alike.items()
    ]
    table = Table(("letters", "reason", "source", "outcome" if request.apply else "plan", "why", ""), rows)
    return [table, None if request.apply else "nothing was sent; --apply sends the letters that would be sent"]
