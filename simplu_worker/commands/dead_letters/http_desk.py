"""Dead letters over HTTP: what the commands do, for operators of a replica that runs (docs/outcomes.md)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.commands.dead_letters.desk import (
    DiscardOptions,
    EditOptions,
    LettersAction,
    ListOptions,
    discard_letters,
    edit_letter,
    list_letters,
    replay_letters,
)
from simplu_worker.commands.dead_letters.edit import NotEditableError
from simplu_worker.commands.dead_letters.replay import ReplayOptions
from simplu_worker.commands.dead_letters.replay_plan import DeadLetterFilter
from simplu_worker.commands.output import NoteList
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.status.guard import Actor, logged_action
from simplu_worker.status.request_bodies import EditRequest, LettersRequest
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.timing.clock import utc_now

LIST_READ_S: Final = 40.0  # less than a request may take
ROOM_BYTES: Final = 4 * 1024 * 1024  # of records in one answer
NEEDS_UNTIL: Final = (
    "until: expected the time of the plan, as its answer names it, so that no later dead letter is touched; got none"
)
NEEDS_REQUEST_ID: Final = (
    "requestId: expected that of the plan, so that a repeated request sends nothing twice; got none"
)
NO_LETTER: Final = (
    "expected a dead letter with this messageId; it is gone, or hidden by another reader: list them again"
)
BUSY: Final = "another request reads the dead letters: repeat this one later"

HttpAnswer = tuple[int, dict[str, Any]]
Act: TypeAlias = Callable[[DeadLetterFilter, NoteList], Awaitable[dict[str, Any]]]


class HttpDesk:
    """Lists, replays and discards dead letters, one request at a time: each hides the letters from the others."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"HttpDesk(busy={self._turn.locked()})"

    async def list(self, request: LettersRequest, actor: Actor) -> HttpAnswer:
        """Answer `POST /dead-letters/list`."""
        options = ListOptions(request.limit, request.records, ROOM_BYTES, request.newest, LIST_READ_S)

        async def look(chosen: DeadLetterFilter, notes: NoteList) -> dict[str, Any]:
            return await list_letters(self._settings, chosen, options, notes)

        return await self._answer(LettersAction.LIST, request, actor, look, {"records": request.records})

    async def replay(self, request: LettersRequest, actor: Actor) -> HttpAnswer:
        """Answer `POST /dead-letters/replay`."""
        options = ReplayOptions(apply=request.apply, force=request.force, limit=request.limit)

        async def replay(chosen: DeadLetterFilter, notes: NoteList) -> dict[str, Any]:
            result = await replay_letters(self._settings, chosen, options, notes)
            members: dict[str, Any] = msgspec.to_builtins(result.members(applied=request.apply))
            return members

        return await self._answer(LettersAction.REPLAY, request, actor, replay, {"force": request.force})

    async def discard(self, request: LettersRequest, actor: Actor) -> HttpAnswer:
        """Answer `POST /dead-letters/discard`."""
        options = DiscardOptions(apply=request.apply, limit=request.limit)

        async def discard(chosen: DeadLetterFilter, notes: NoteList) -> dict[str, Any]:
            return await discard_letters(self._settings, chosen, options, notes)

        return await self._answer(LettersAction.DISCARD, request, actor, discard, {})

    async def edit(self, request: EditRequest, actor: Actor) -> HttpAnswer:
        """Answer `POST /dead-letters/edit`. The log links the new request id to the old one."""
        if request.apply and request.request_id is None:
            return 400, {"error": NEEDS_REQUEST_ID}
        if self._turn.locked():
            return 409, {"error": BUSY}
        request_id = request.request_id or str(uuid.uuid4())
        options = EditOptions(request.message_id, request.record, request_id, request.apply)
        asked: dict[str, Any] = {"messageId": request.message_id, "requestId": request_id}
        async with self._turn:
            notes = NoteList()
            try:
                with logged_action(LettersAction.EDIT, actor, asked, apply=request.apply) as acted:
                    status, answer = await self._edit(options, notes)
                    asked["oldRequestId"] = answer.get("oldRequestId")
                    acted.answer = answer
            except WorkerError as exc:
                return 503, {"error": scrub_text(str(exc))}
        return status, answer

    async def _edit(self, options: EditOptions, notes: NoteList) -> HttpAnswer:
        try:
            answer = await edit_letter(self._settings, options, notes)
        except ValueError as exc:
            return 400, {"error": str(exc)}
        except NotEditableError as exc:
            return 409, {"error": str(exc)}
        return (404, {"error": NO_LETTER}) if answer is None else (200, answer | {"notes": notes.texts})

    async def _answer(
        self, action: LettersAction, request: LettersRequest, actor: Actor, act: Act, asked: dict[str, Any]
    ) -> HttpAnswer:
        request = request.in_utc()
        if request.apply and request.until is None:
            return 400, {"error": NEEDS_UNTIL}
        if self._turn.locked():
            return 409, {"error": BUSY}
        async with self._turn:
            planned_at, notes = utc_now(), NoteList()
            filters = filter_of(request, planned_at)
            asked = filters.facts() | {"limit": request.limit} | asked
            try:
                with logged_action(action, actor, asked, apply=request.apply) as acted:
                    acted.answer = answer = await act(filters, notes)
            except WorkerError as exc:
                return 503, {"error": scrub_text(str(exc))}
        until = request.until or planned_at
        return 200, answer | {"until": until.isoformat(), "notes": notes.texts}


def filter_of(request: LettersRequest, planned_at: datetime) -> DeadLetterFilter:
    """Return the filter of a request: without `until` that of letters until *planned_at*."""
    business_id, location_id = request.business_id, request.location_id
    return DeadLetterFilter(
        reasons=frozenset(request.reasons),
        source=request.source,
        tenant=None if business_id is None or location_id is None else (business_id, location_id),
        since=request.since,
        until=request.until or planned_at,
        message_ids=frozenset(request.message_ids),
    )
