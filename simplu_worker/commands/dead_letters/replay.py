"""One pass of `dead-letters replay` over the dead-letter queue: read, sort, send, delete."""

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
from simplu_worker.dead_letters.letter import DeadLetter, NotADeadLetterError, parse_dead_letter
from simplu_worker.errors import RetryableError
from simplu_worker.vocabulary import DeadLetterReason, Source


class ReplayStatus(StrEnum):
    """The outcome of one letter, done or planned."""

    SENT = "sent"
    WOULD_SEND = "would send"
    LEFT = "left"


class ReplayOptions(NamedTuple):
    """The options of `dead-letters replay`."""

    apply: bool
    force: bool
    limit: int | None


class ChosenLetter(msgspec.Struct, frozen=True):
    """A letter that the filter matches; its text is in the spool."""

    message_id: str
    reason: DeadLetterReason
    source: Source
    name: str
    failed_at: datetime
    group: str
    record_key: str
    sort_key: OrderKey
    text: SpoolPosition


class ReplayOutcome(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The outcome of one message of the queue; *why* and *detail* if it was left there."""

    message_id: str
    status: ReplayStatus
    reason: DeadLetterReason | None = None
    source: Source | None = None
    name: str | None = None
    failed_at: datetime | None = None
    why: LeftReason | None = None
    detail: str | None = None


class DeadLetterReplay:
    """One pass over the letters that the queue shows: `read` them, then `run`."""

    def __init__(self, browser: DeadLetterBrowser, resender: DeadLetterResender, options: ReplayOptions) -> None:
        self._browser = browser
        self._resender = resender
        self._options = options
        self._spool = Spool()
        self._chosen: list[ChosenLetter] = []
        self._outcomes: list[ReplayOutcome] = []
        self._copies: defaultdict[str, list[ChosenLetter]] = defaultdict(list)
        self._blocked: set[tuple[str, str]] = set()  # source and group of each letter that was not sent

    def close(self) -> None:
        """Delete the texts of the letters."""
        self._spool.close()

    async def read(self, filters: DeadLetterFilter, expected: int, *, newest: datetime | None) -> None:
        """Read the queue's messages that are not newer than *newest*."""
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
                if filters.match(letter, message.message_id):
                    self._chosen.append(self._choose(message, letter))
                    if filters.is_complete(len(self._chosen)):
                        return

    async def run(self, limit: int | None) -> list[ReplayOutcome]:
        """Send the first *limit* letters, in order; return the outcome of each."""
        for chosen in sorted(self._chosen, key=lambda chosen: chosen.sort_key)[:limit]:
            self._copies[chosen.record_key].append(chosen)
        leaders = [copies[0] for copies in self._copies.values()]
        request, requested = ResendRequest(), list[ChosenLetter]()
        done = 0
        with self._browser.narration.count("sent" if self._options.apply else "planned", len(leaders)) as progress:
            try:
                for chosen in leaders:
                    await self._browser.keep_hidden()
                    resend = await self._plan_resend(chosen)
                    if isinstance(resend, LeftLetter):
                        self._leave(chosen, resend)
                        continue
                    if not request.has_room_for(resend):
                        await self._send(request, requested)
                        progress.show(done := done + len(requested))
                        request, requested = ResendRequest(), []
                        if self._is_blocked(chosen):
                            self._leave(chosen, _left_behind())
                            continue
                    request.add(resend)
                    requested.append(chosen)
                await self._send(request, requested)
                progress.show(done + len(requested))
            except RetryableError as exc:
                self._leave_rest(leaders, f"the replay stopped at an error: {exc}")
        return self._outcomes

    async def _plan_resend(self, chosen: ChosenLetter) -> Resend | LeftLetter:
        if self._is_blocked(chosen):
            return _left_behind()
        return await self._resender.plan_resend(parse_dead_letter(self._spool.get(chosen.text)))

    async def _send(self, request: ResendRequest, requested: Sequence[ChosenLetter]) -> None:
        """Send, then delete the letters. After a kill in between, repeated records are dropped by their request ids."""
        if not self._options.apply:
            for chosen in requested:
                self._record(chosen, ReplayStatus.WOULD_SEND)
            return
        refused = await self._resender.send(request)
        sent = [chosen for index, chosen in enumerate(requested) if index not in refused]
        for index, left in refused.items():
            self._blocked.add((requested[index].name, requested[index].group))
            self._leave(requested[index], left)
        copies = [copy.message_id for chosen in sent for copy in self._copies[chosen.record_key]]
        kept = await self._browser.delete(copies)
        for chosen in sent:
            self._record(chosen, ReplayStatus.SENT, kept=kept)

    def _choose(self, message: Message, letter: DeadLetter) -> ChosenLetter:
        return ChosenLetter(
            message_id=message.message_id,
            reason=letter.reason,
            source=letter.origin.source,
            name=letter.origin.name,
            failed_at=letter.failed_at,
            group=order_group(letter),
            record_key=record_key(letter),
            sort_key=sort_key(letter),
            text=self._spool.put(message.body),
        )

    def _is_blocked(self, chosen: ChosenLetter) -> bool:
        return (chosen.name, chosen.group) in self._blocked

    def _record(
        self, chosen: ChosenLetter, status: ReplayStatus, *, kept: set[str] | frozenset[str] = frozenset()
    ) -> None:
        for copy in self._copies[chosen.record_key]:
            outcome = _outcome(copy, status)
            if copy.message_id in kept:
                detail = "the record was sent, but its letter was not deleted; sent again, the record would be dropped"
                outcome = _outcome(copy, ReplayStatus.LEFT, LeftLetter(LeftReason.NOT_DELETED, detail))
            self._outcomes.append(outcome)

    def _leave(self, chosen: ChosenLetter, left: LeftLetter) -> None:
        self._outcomes += [_outcome(copy, ReplayStatus.LEFT, left) for copy in self._copies[chosen.record_key]]

    def _leave_rest(self, leaders: Sequence[ChosenLetter], why: str) -> None:
        recorded = {outcome.message_id for outcome in self._outcomes}
        for chosen in leaders:
            if chosen.message_id not in recorded:
                self._leave(chosen, LeftLetter(LeftReason.NOT_REACHED, why))


def _outcome(chosen: ChosenLetter, status: ReplayStatus, left: LeftLetter | None = None) -> ReplayOutcome:
    return ReplayOutcome(
        message_id=chosen.message_id,
        status=status,
        reason=chosen.reason,
        source=chosen.source,
        name=chosen.name,
        failed_at=chosen.failed_at,
        why=None if left is None else left.why,
        detail=None if left is None else left.detail,
    )


def _left_behind() -> LeftLetter:
    return LeftLetter(LeftReason.BEHIND_UNSENT, "an earlier record of the same key or group was not sent")
