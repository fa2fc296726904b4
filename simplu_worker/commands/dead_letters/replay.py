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
from simplu_worker.commands.dead_letters.browse import DeadLetterBrowser, LetterPosition, Spool, read_box
from simplu_worker.commands.dead_letters.replay_plan import (
    DeadLetterFilter,
    Left,
    LeftReason,
    OrderKey,
    Request,
    Resend,
    group_of,
    order_of,
    place_of,
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


class Held(msgspec.Struct, frozen=True):
    """A letter that is meant, but for its text."""

    message_id: str
    reason: DeadLetterReason
    source: Source
    name: str
    failed_at: datetime
    group: str
    place: str
    order: OrderKey
    text: LetterPosition


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

    def __init__(self, box: DeadLetterBrowser, sender: DeadLetterResender, options: ReplayOptions) -> None:
        self._box = box
        self._sender = sender
        self._options = options
        self._spool = Spool()
        self._found: list[Held] = []
        self._fates: list[ReplayOutcome] = []
        self._copies: defaultdict[str, list[Held]] = defaultdict(list)
        self._stuck: set[tuple[str, str]] = set()  # source names and groups of which something was not sent

    def close(self) -> None:
        """Forget what was read."""
        self._spool.close()

    async def read(self, filters: DeadLetterFilter, expected: int, *, newest: datetime | None) -> None:
        """Read what is in the queue, but for what came after *newest*."""
        async with aclosing(read_box(self._box, expected)) as messages:
            async for message in messages:
                if newest is not None and message.sent_at > newest:
                    continue
                try:
                    letter = parse_dead_letter(message.body).letter
                except NotADeadLetterError as exc:
                    if filters.is_all:
                        why = LeftReason.NOT_A_LETTER
                        self._fates.append(
                            ReplayOutcome(message.message_id, ReplayStatus.LEFT, why=why, detail=str(exc))
                        )
                    continue
                if filters.match(letter):
                    self._found.append(self._held(message, letter))

    async def run(self, limit: int | None) -> list[ReplayOutcome]:
        """Send the first *limit* of what was read, in order; return what became of each."""
        for held in sorted(self._found, key=lambda held: held.order)[:limit]:
            self._copies[held.place].append(held)
        leaders = [copies[0] for copies in self._copies.values()]
        request, requested = Request(), list[Held]()
        done = 0
        with PutProgress("sent" if self._options.apply else "looked through", len(leaders)) as progress:
            try:
                for held in leaders:
                    await self._box.keep()
                    resend = await self._resend_of(held)
                    if isinstance(resend, Left):
                        self._leave(held, resend)
                        continue
                    if not request.takes(resend):
                        await self._send(request, requested)
                        progress.show(done := done + len(requested))
                        request, requested = Request(), []
                        if self._is_stuck(held):
                            self._leave(held, _behind())
                            continue
                    request.add(resend)
                    requested.append(held)
                await self._send(request, requested)
                progress.show(done + len(requested))
            except RetryableError as exc:
                self._leave_rest(leaders, f"stopped by trouble: {exc}")
        return self._fates

    async def _resend_of(self, held: Held) -> Resend | Left:
        if self._is_stuck(held):
            return _behind()
        return await self._sender.resend_of(parse_dead_letter(self._spool.get(held.text)))

    async def _send(self, request: Request, requested: Sequence[Held]) -> None:
        """Send, then delete the letters: what is killed in between is sent again, and dropped by its request id."""
        if not self._options.apply:
            for held in requested:
                self._note(held, ReplayStatus.WOULD_SEND)
            return
        refused = await self._sender.send(request)
        sent = [held for place, held in enumerate(requested) if place not in refused]
        for place, left in refused.items():
            self._stuck.add((requested[place].name, requested[place].group))
            self._leave(requested[place], left)
        copies = [copy.message_id for held in sent for copy in self._copies[held.place]]
        kept = await self._box.delete(copies)
        for held in sent:
            self._note(held, ReplayStatus.SENT, kept=kept)

    def _held(self, message: Message, letter: DeadLetter) -> Held:
        return Held(
            message_id=message.message_id,
            reason=letter.reason,
            source=letter.origin.source,
            name=letter.origin.name,
            failed_at=letter.failed_at,
            group=group_of(letter),
            place=place_of(letter),
            order=order_of(letter),
            text=self._spool.put(message.body),
        )

    def _is_stuck(self, held: Held) -> bool:
        return (held.name, held.group) in self._stuck

    def _note(self, held: Held, status: ReplayStatus, *, kept: set[str] | frozenset[str] = frozenset()) -> None:
        for copy in self._copies[held.place]:
            fate = _fate(copy, status)
            if copy.message_id in kept:
                detail = "it was sent, but the queue did not delete its letter; sent again, it would be dropped"
                fate = _fate(copy, ReplayStatus.LEFT, Left(LeftReason.NOT_DELETED, detail))
            self._fates.append(fate)

    def _leave(self, held: Held, left: Left) -> None:
        self._fates += [_fate(copy, ReplayStatus.LEFT, left) for copy in self._copies[held.place]]

    def _leave_rest(self, leaders: Sequence[Held], why: str) -> None:
        told = {fate.message_id for fate in self._fates}
        for held in leaders:
            if held.message_id not in told:
                self._leave(held, Left(LeftReason.NOT_REACHED, why))


def _fate(held: Held, status: ReplayStatus, left: Left | None = None) -> ReplayOutcome:
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


def _behind() -> Left:
    return Left(LeftReason.BEHIND_UNSENT, "one before it, of the same key or group, was not sent")
