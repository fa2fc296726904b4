"""Dead letters over HTTP (docs/dead-letters.md)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any, Final

from simplu_worker.config.settings import Settings
from simplu_worker.dead_letters.plan import DeadLetterFilter, NotEditableError
from simplu_worker.dead_letters.service import (
    ApplyOptions,
    DeadLetterService,
    LettersAction,
    ListOptions,
    NoteList,
)
from simplu_worker.errors import WorkerError
from simplu_worker.status.guard import Actor, logged_action
from simplu_worker.status.request_bodies import EditRequest, LettersRequest
from simplu_worker.status.responses import HttpAnswer
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


class LetterRequests:
    """Answers requests about dead letters, one at a time: each hides them from others."""

    def __init__(self, settings: Settings) -> None:
        self._service = DeadLetterService(settings)
        self._turn = asyncio.Lock()

    async def list(self, request: LettersRequest, actor: Actor) -> HttpAnswer:
        """Answer `POST /dead-letters/list`."""
        options = ListOptions(request.limit, request.records, ROOM_BYTES, request.newest, LIST_READ_S)
        act = partial(self._service.list, options=options)
        return await self._answer(LettersAction.LIST, request, actor, act, {"records": request.records})

    async def replay(self, request: LettersRequest, actor: Actor) -> HttpAnswer:
        """Answer `POST /dead-letters/replay`."""
        act = partial(self._service.replay, options=ApplyOptions(request.apply, request.limit, request.force))
        return await self._answer(LettersAction.REPLAY, request, actor, act, {"force": request.force})

    async def discard(self, request: LettersRequest, actor: Actor) -> HttpAnswer:
        """Answer `POST /dead-letters/discard`."""
        act = partial(self._service.discard, options=ApplyOptions(request.apply, request.limit))
        return await self._answer(LettersAction.DISCARD, request, actor, act, {})

    async def edit(self, request: EditRequest, actor: Actor) -> HttpAnswer:
        """Answer `POST /dead-letters/edit`. The log links the new request id to the old one."""
        if request.apply and request.request_id is None:
            return 400, {"error": NEEDS_REQUEST_ID}
        request_id = request.request_id or str(uuid.uuid4())
        asked: dict[str, Any] = {"messageId": request.message_id, "requestId": request_id}

        async def edit() -> HttpAnswer:
            status, answer = await self._edit(request, request_id)
            asked["oldRequestId"] = answer.get("oldRequestId")
            return status, answer

        return await self._act(LettersAction.EDIT, actor, asked, edit, apply=request.apply)

    async def _edit(self, request: EditRequest, request_id: str) -> HttpAnswer:
        notes = NoteList()
        try:
            answer = await self._service.edit(
                request.message_id, request.record, request_id, notes, apply=request.apply
            )
        except ValueError as exc:
            return 400, {"error": str(exc)}
        except NotEditableError as exc:
            return 409, {"error": str(exc)}
        return (404, {"error": NO_LETTER}) if answer is None else (200, answer | {"notes": notes.texts})

    async def _answer(
        self,
        action: LettersAction,
        request: LettersRequest,
        actor: Actor,
        act: Callable[..., Awaitable[dict[str, Any]]],
        asked: dict[str, Any],
    ) -> HttpAnswer:
        request = request.in_utc()
        if request.apply and request.until is None:
            return 400, {"error": NEEDS_UNTIL}
        filters = filter_of(request, until := request.until or utc_now())

        async def answer() -> HttpAnswer:
            notes = NoteList()
            found = await act(filters, narration=notes)
            return 200, found | {"until": until.isoformat(), "notes": notes.texts}

        asked = filters.facts() | {"limit": request.limit} | asked
        return await self._act(action, actor, asked, answer, apply=request.apply)

    async def _act(
        self,
        action: LettersAction,
        actor: Actor,
        asked: dict[str, Any],
        act: Callable[[], Awaitable[HttpAnswer]],
        *,
        apply: bool,
    ) -> HttpAnswer:
        if self._turn.locked():
            return 409, {"error": BUSY}
        async with self._turn:
            try:
                with logged_action(action, actor, asked, apply=apply) as acted:
                    status, acted.answer = await act()
            except WorkerError as exc:
                return 503, {"error": scrub_text(str(exc))}
        return status, dict(acted.answer)


def filter_of(request: LettersRequest, until: datetime) -> DeadLetterFilter:
    """Return the filter of a request."""
    business_id, location_id = request.business_id, request.location_id
    return DeadLetterFilter(
        reasons=frozenset(request.reasons),
        source=request.source,
        tenant=None if business_id is None or location_id is None else (business_id, location_id),
        since=request.since,
        until=until,
        message_ids=frozenset(request.message_ids),
    )
