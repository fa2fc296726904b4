"""One pass of `dead-letters replay` over the queue of dead letters: read, put in order, send, delete."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.commands.dead_letters.browse import DeadLetterBrowser, Spool, SpoolPosition, read_with_progress
from simplu_worker.commands.dead_letters.replay_plan import (
    DeadLetterFilter,
    LeftLetter,
    LeftReason,
    OrderKey,
    Resend,
    ResendRequest,
    order_group,
    record_key,
    sort_key,
)
from simplu_worker.commands.dead_letters.resend import DeadLetterResender
from simplu_worker.commands.stream.put_records import PutProgress
from simplu_worker.dead_letters.letter import DeadLetter, NotADeadLetterError, parse_dead_letter
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import DeadLetterReason, Source


class ReplayStatus(StrEnum):
    """What became of one letter, or would."""

    SENT = "sent"
    WOULD_SEND = "would send"
    LEFT = "left"


class ReplayOptions(NamedTuple):
    """How to replay."""

    apply: bool
    force: bool
    limit: int | None


class ChosenLetter(msgspec.Struct, frozen=True):
    """A letter that is meant, but for its text."""

    message_id: str
    reason: DeadLetterReason
    source: Source
    name: str
    failed_at: datetime
    group: str
    place: str
    order: OrderKey
    text: SpoolPosition


class ReplayOutcome(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One message of the queue and what became of it; *why* and *detail* when it was left."""

    message_id: str
    status: ReplayStatus
    reason: DeadLetterReason | None = None
    source: Source | None = None
    name: str | None = None
    failed_at: datetime | None = None
    why: LeftReason | None = None
    detail: str | None = None


class DeadLetterReplay:
    """One pass over what the queue shows: read it, then send in order."""

    def __init__(self, browser: DeadLetterBrowser, resender: DeadLetterResender, options: ReplayOptions) -> None:
        self._browser = browser
        self._resender = resender
        self._options = options
        self._spool = Spool()
        self._found: list[ChosenLetter] = []
        self._outcomes: list[ReplayOutcome] = []
        self._copies: defaultdict[str, list[ChosenLetter]] = defaultdict(list)
        self._blocked: set[tuple[str, str]] = set()  # source names and groups of which something was not sent

    def close(self) -> None:
        """Forget what was read."""
        self._spool.close()

    async def read(self, filters: DeadLetterFilter, expected: int, *, newest: datetime | None) -> None:
        """Read what is in the queue, but for what came after *newest*."""
        async with aclosing(read_with_progress(self._browser, expected)) as messages:
            async for message in messages:
                if newest is not None and message.sent_at > newest:
                    continue
                try:
                    letter = parse_dead_letter(message.body).letter
                except NotADeadLetterError as exc:
                    if filters.is_all:
                        why = LeftReason.NOT_A_LETTER
                        self._outcomes.append(
                            ReplayOutcome(message.message_id, ReplayStatus.LEFT, why=why, detail=str(exc))
                        )
                    continue
                if filters.match(letter):
                    self._found.append(self._choose(message, letter))

    async def run(self, limit: int | None) -> list[ReplayOutcome]:
        """Send the first *limit* of what was read, in order; return what became of each."""
        for held in sorted(self._found, key=lambda held: held.order)[:limit]:
            self._copies[held.place].append(held)
        leaders = [copies[0] for copies in self._copies.values()]
        request, requested = ResendRequest(), list[ChosenLetter]()
        done = 0
        with PutProgress("sent" if self._options.apply else "depth through", len(leaders)) as progress:
            try:
                for held in leaders:
                    await self._browser.keep_hidden()
                    resend = await self._plan_resend(held)
                    if isinstance(resend, LeftLetter):
                        self._leave(held, resend)
                        continue
                    if not request.has_room_for(resend):
                        await self._send(request, requested)
                        progress.show(done := done + len(requested))
                        request, requested = ResendRequest(), []
                        if self._is_blocked(held):
                            self._leave(held, _left_behind())
                            continue
                    request.add(resend)
                    requested.append(held)
                await self._send(request, requested)
                progress.show(done + len(requested))
            except RetryableError as exc:
                self._leave_rest(leaders, f"stopped by trouble: {exc}")
        return self._outcomes

    async def _plan_resend(self, held: ChosenLetter) -> Resend | LeftLetter:
        if self._is_blocked(held):
            return _left_behind()
        return await self._resender.plan_resend(parse_dead_letter(self._spool.get(held.text)))

    async def _send(self, request: ResendRequest, requested: Sequence[ChosenLetter]) -> None:
        """Send, then delete the letters: what is killed in between is sent again, and dropped by its request id."""
        if not self._options.apply:
            for held in requested:
                self._record(held, ReplayStatus.WOULD_SEND)
            return
        refused = await self._resender.send(request)
        sent = [held for place, held in enumerate(requested) if place not in refused]
        for place, left in refused.items():
            self._blocked.add((requested[place].name, requested[place].group))
            self._leave(requested[place], left)
        copies = [copy.message_id for held in sent for copy in self._copies[held.place]]
        kept = await self._browser.delete(copies)
        for held in sent:
            self._record(held, ReplayStatus.SENT, kept=kept)

    def _choose(self, message: Message, letter: DeadLetter) -> ChosenLetter:
        return ChosenLetter(
            message_id=message.message_id,
            reason=letter.reason,
            source=letter.origin.source,
            name=letter.origin.name,
            failed_at=letter.failed_at,
            group=order_group(letter),
            place=record_key(letter),
            order=sort_key(letter),
            text=self._spool.put(message.body),
        )

    def _is_blocked(self, held: ChosenLetter) -> bool:
        return (held.name, held.group) in self._blocked

    def _record(
        self, held: ChosenLetter, status: ReplayStatus, *, kept: set[str] | frozenset[str] = frozenset()
    ) -> None:
        for copy in self._copies[held.place]:
            outcome = _outcome(copy, status)
            if copy.message_id in kept:
                detail = "it was sent, but the queue did not delete its letter; sent again, it would be dropped"
                outcome = _outcome(copy, ReplayStatus.LEFT, LeftLetter(LeftReason.NOT_DELETED, detail))
            self._outcomes.append(outcome)

    def _leave(self, held: ChosenLetter, left: LeftLetter) -> None:
        self._outcomes += [_outcome(copy, ReplayStatus.LEFT, left) for copy in self._copies[held.place]]

    def _leave_rest(self, leaders: Sequence[ChosenLetter], why: str) -> None:
        told = {outcome.message_id for outcome in self._outcomes}
        for held in leaders:
            if held.message_id not in told:
                self._leave(held, LeftLetter(LeftReason.NOT_REACHED, why))


def _outcome(held: ChosenLetter, status: ReplayStatus, left: LeftLetter | None = None) -> ReplayOutcome:
    return ReplayOutcome(
        message_id=held.message_id,
        status=status,
        reason=held.reason,
        source=held.source,
        name=held.name,
        failed_at=held.failed_at,
        why=None if left is None else left.why,
        detail=None if left is None else left.detail,
    )


def _left_behind() -> LeftLetter:
    return LeftLetter(LeftReason.BEHIND_UNSENT, "one before it, of the same key or group, was not sent")
