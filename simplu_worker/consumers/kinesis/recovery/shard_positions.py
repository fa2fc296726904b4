"""What a reader and each Postgres shard know of each other: the reader's row there, and what it writes into it next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import msgspec
import structlog

from simplu_worker.consumers.kinesis.holding.holds import Holds
from simplu_worker.consumers.kinesis.holding.parent_records import ParentRecords
from simplu_worker.consumers.kinesis.holding.tenant_set import TENANT
from simplu_worker.consumers.kinesis.recovery.recovery_plan import (
    Lineage,
    Place,
    format_position,
    ignoring_pending,
    replay_start,
    unread_ancestors,
)
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, RecordPosition, is_after
from simplu_worker.errors import RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import PositionClaim, StoredPositions, StreamPosition
from simplu_worker.timing.clock import UtcClock, loop_time

TOUCH_AFTER_S: Final = 30.0  # a row not written for so long, while the reader went on
AHEAD_FRESH_S: Final = 1.0
CLOCKS_APART_MOST: Final = timedelta(hours=1)
MOVED_MARGIN_S: Final = 10.0  # between two looks at different clocks

log = structlog.get_logger(__name__)


class ReaderProgress(msgspec.Struct, frozen=True):
    """How far a reader is: behind *owed_from* something may be owed; None is where it began to read."""

    owed_from: RecordPosition | None
    is_finished: bool = False


class PositionRow(msgspec.Struct, frozen=True):
    """What a row says of how far a reader is; its members are those of the row."""

    owed_from: str = ""
    read_to: str | None = None
    held: tuple[str, ...] | None = None


class Backfill(msgspec.Struct, frozen=True):
    """What is to be read again for all tenants of a Postgres shard: first of *parents*, then behind *before*."""

    before: RecordPosition | None
    parents: tuple[ParentRecords, ...]


class ShardPosition:
    """One reader and one Postgres shard. Whoever writes the row, or decides about it, has the turn."""

    def __init__(self, shard_id: str, claim: PositionClaim) -> None:
        self.shard_id = shard_id
        self.claim = claim
        self.turn = asyncio.Lock()
        self.is_met = False  # its row was read before
        self.is_adopted = False  # its row is known, and what that lacks is being read again
        self.had_ended = False  # whether the parents had ended, before the row was read
        self.written_at = float("-inf")  # monotonic

    def forget_row(self) -> None:
        """Have the row read anew, and what it lacks found anew."""
        self.is_adopted = False
        self.claim.fencing_tokens = []

    def __repr__(self) -> str:
        return f"Contact({self.shard_id}, {'adopted' if self.is_adopted else 'unknown'}, {self.claim.owed_from})"


class ReaderState(msgspec.Struct, frozen=True):
    """What a reader lets its contacts ask it for.

    *began_at* is where its main reading began, *dispatch* where that is now; None where nothing is before it. It began
    by holding *taken_over*, from *checkpoint* on.
    *progress* is how far all is, *ahead* how far all but those whom it owes what is older (without `owed_from`).
    *first_since* finds the place before the first record that arrived since an instant (None: there is none), *confirm*
    tells whether the lease is still its own.
    """

    stream_name: str
    stream_shard_id: str
    began_at: RecordPosition | None
    checkpoint: RecordPosition | None
    taken_over: AbstractSet[str]
    dispatch: Callable[[], RecordPosition | None]
    progress: Callable[[], ReaderProgress]
    ahead: Callable[[], PositionRow | None]
    first_since: Callable[[datetime], Awaitable[RecordPosition | None]]
    confirm: Callable[[], Awaitable[bool]]
    lineage: Callable[[], Lineage]
    started_at: datetime | None


class ShardPositions:
    """The rows of one reader, on all Postgres shards."""

    def __init__(
        self,
        gateway: ShardGateway,
        holds: Holds,
        facts: ReaderState,
        *,
        tenant_wait: timedelta,
        utc: UtcClock,
    ) -> None:
        self._gateway = gateway
        self._holds = holds
        self._facts = facts
        self._tenant_wait = tenant_wait
        self._utc = utc
        self._contacts: dict[str, ShardPosition] = {}
        self._began = loop_time()
        self._ahead: tuple[float, PositionRow | None] = (
            float("-inf"),
            None,
        )  # without its owed_from, which is of the moment

    def __repr__(self) -> str:
        return f"Contacts({list(self._contacts.values())})"

    def of(self, shard_id: str) -> ShardPosition:
        """Return the contact with a Postgres shard."""
        contact = self._contacts.get(shard_id)
        if contact is None:
            claim = PositionClaim(self._facts.stream_name, self._facts.stream_shard_id)
            contact = self._contacts[shard_id] = ShardPosition(shard_id, claim)
        return contact

    def adopted(self) -> list[ShardPosition]:
        """Return the contacts with shards whose row is known."""
        return [contact for contact in self._contacts.values() if contact.is_adopted]

    def claim(self, contact: ShardPosition) -> PositionClaim:
        """Return what the next write into the row says: where the reader is before it, not behind it.

        What a batch comes to is known too late, and an operation of it may not be applied.
        """
        claim, progress = contact.claim, self._facts.progress()
        said = self._said(progress)
        claim.owed_from, claim.read_to, claim.held = said.owed_from, said.read_to, said.held
        claim.owed_since = None if progress.owed_from is None else progress.owed_from.arrived_at
        contact.written_at = loop_time()
        return claim

    def is_due(self, contact: ShardPosition, *, within_s: float = TOUCH_AFTER_S) -> bool:
        """Tell whether a row that is known was not written for a while and would say something else now."""
        if not contact.is_adopted or loop_time() - contact.written_at < within_s:
            return False
        claim = contact.claim
        return PositionRow(claim.owed_from, claim.read_to, claim.held) != self._said(self._facts.progress())

    def _said(self, progress: ReaderProgress) -> PositionRow:
        """Return what a row would say now: what is owed, and where some tenants are owed what is older, how far."""
        if progress.is_finished:
            return PositionRow(SHARD_END.checkpoint)
        owed_from, ahead = format_position(progress.owed_from), self._fresh_ahead()
        return PositionRow(owed_from) if ahead is None else msgspec.structs.replace(ahead, owed_from=owed_from)

    async def leave_word(self, contact: ShardPosition) -> None:
        """Write how far the reader is at its end, beside no effect; not where that would have to be waited for.

        Nor where the row is another's, or none answers: who comes next then reads a little again.
        """
        self._ahead = (float("-inf"), None)
        is_free = self._gateway.is_up(contact.shard_id) and not contact.turn.locked()
        if not is_free or not self.is_due(contact, within_s=0.0):
            return
        async with contact.turn:
            if not contact.is_adopted:
                return
            with contextlib.suppress(RetryableError):
                changed = await self._gateway.write_positions(contact.shard_id, [self.claim(contact)])
                contact.is_adopted = not changed

    async def confirm(self) -> bool:
        """Tell whether the lease is still the reader's, as far as anybody answers."""
        return await self._facts.confirm()

    async def adopt(self, contact: ShardPosition) -> Backfill | None:
        """Read what the shard knows, and return what has to be read again of the stream; None when nothing has.

        To be called in the contact's turn. Raises `RetryableError` when that cannot be found out.
        """
        claim, lineage = contact.claim, self.lineage()  # first: what had ended before the rows were read
        shard_id, is_first = contact.shard_id, not contact.is_met
        if lineage.ancestors:
            standing = await self._gateway.fence_and_read_positions(
                shard_id, claim, sorted(lineage.ancestors), is_first=is_first
            )
        else:
            standing = await self._gateway.read_positions(
                shard_id, claim.stream, [claim.stream_shard_id], is_first=is_first
            )
        if standing is None:
            raise RetryableError(f"shard {contact.shard_id}: it has no schema yet")
        return await self.adopt_by(contact, lineage, standing)

    def lineage(self) -> Lineage:
        """Return what the stream shard continues."""
        return self._facts.lineage()

    def is_doubtful(self, contact: ShardPosition, lineage: Lineage, standing: StoredPositions) -> bool:
        """Tell whether a row has to be read anew: it is not as it was left, or the parents have ended since."""
        row = standing.rows.get(self._facts.stream_shard_id)
        if (row.fencing_token not in contact.claim.fencing_tokens) if row is not None else contact.claim.fencing_tokens:
            return True
        return lineage.are_ended and not contact.claim.parents_done and not self._holds.has_parents

    async def adopt_by(self, contact: ShardPosition, lineage: Lineage, standing: StoredPositions) -> Backfill | None:
        """Do what `adopt` does, with an answer of the shard that is there already.

        At the first contact all that came since the reader began is in its hands, unless a tenant was moved here
        meanwhile; later it may have been applied, and lost, unless the row is as the reader left it.
        """
        row = standing.rows.get(self._facts.stream_shard_id)
        is_in_hand = not contact.is_met and not self._is_moved_to(standing)
        own = self._facts.began_at if is_in_hand else self._facts.dispatch()
        before, is_unchanged = None, _is_unchanged(contact, row, standing)
        if own is not None and not is_unchanged:
            place = replay_start(
                row,
                standing.first_tenant_at,
                tenant_wait=self._tenant_wait,
                started_at=self._facts.started_at,
                covers=partial(self._covers, is_met=contact.is_met),
                now=self._utc(),
            )
            before = await self._lower(place, own)
        are_done = row is not None and row.parents_done
        is_sent_again = not is_unchanged and self._holds.reads_parents_for(contact.shard_id)  # and so may be lost again
        is_alone = before is None and not is_sent_again
        parents = () if are_done else self._unread_ancestors(lineage, standing, is_alone=is_alone)
        contact.claim.fencing_tokens = [] if row is None else [row.fencing_token]
        contact.claim.move_token = standing.move_token
        contact.had_ended = lineage.are_ended
        contact.claim.parents_done = are_done or (lineage.are_ended and not parents)
        contact.is_met = contact.is_adopted = True
        if before is None and not parents:
            return None
        self._ahead = (float("-inf"), None)
        instruments.SHARD_REFILLS.labels(contact.shard_id).inc()
        log.warning(
            "shard.refilling",
            shard_id=contact.shard_id,
            stream_shard_id=self._facts.stream_shard_id,
            owed_from=format_position(before or own),
            read_to=format_position(own),
            parents=[records.stream_shard_id for records in parents],
        )
        return Backfill(before or own, parents)

    def _unread_ancestors(
        self, lineage: Lineage, standing: StoredPositions, *, is_alone: bool
    ) -> tuple[ParentRecords, ...]:
        """Return which records of the ancestors are to be read again; *is_alone* when nothing else is.

        None while the ancestors lack only what is held here until they have applied it, and nothing of that was sent
        from here, as when it is just being read again.
        """
        if is_alone and not lineage.are_ended:
            rest = ignoring_pending(standing, self._holds.wait_for_parents)
            if not unread_ancestors(lineage, rest, tenant_wait=self._tenant_wait):
                return ()
        return unread_ancestors(lineage, standing, tenant_wait=self._tenant_wait)

    def _is_moved_to(self, standing: StoredPositions) -> bool:
        """Whether a tenant was moved to a shard since the reader began, which may have sent it something elsewhere."""
        return (
            standing.last_move_age_s is not None
            and standing.last_move_age_s < loop_time() - self._began + MOVED_MARGIN_S
        )

    def _covers(self, names: AbstractSet[str], owed_from: RecordPosition | None, *, is_met: bool) -> bool:
        """Tell whether the reader sees to it that tenants get everything behind *owed_from*.

        By holding them, or, before it has sent anything there, by having held them since it began.
        """
        facts = self._facts
        if not is_met and names <= facts.taken_over and not _is_after(facts.checkpoint, owed_from):
            return True
        holds = [self._holds.by_name(name) for name in names]
        return all(hold is not None and not _is_after(hold.reached, owed_from) for hold in holds)

    async def _lower(self, place: Place, own: RecordPosition) -> RecordPosition | None:
        """Return *place* where that is before *own*, which is behind where reading began."""
        if isinstance(place, datetime):
            # Where the reader took over that is by its clock, for nobody knows when that record arrived.
            if own.arrived_at < place - CLOCKS_APART_MOST:
                return None
            place = await self._facts.first_since(place)
        return place if place is not None and is_after(own, place) else None

    def parents_read(self, shard_id: str) -> None:
        """Note that all that the parents owed a shard is there; the next write says so, if they had ended before."""
        contact = self.of(shard_id)
        contact.claim.parents_done = contact.claim.parents_done or (contact.is_adopted and contact.had_ended)

    def doubt_parents(self) -> list[ShardPosition]:
        """Have the rows read anew that do not say yet that the parents are done; return whose.

        What they owed no more may have been lost since.
        """
        doubtful = [one for one in self._contacts.values() if one.is_adopted and not one.claim.parents_done]
        for contact in doubtful:
            contact.is_adopted = False
        return doubtful

    def _fresh_ahead(self) -> PositionRow | None:
        """Return whom the reader owes something older than all others, where a row has room for their names."""
        if self._holds.has_whole:
            return None  # whose tenants nobody knows by name
        asked_at, said = self._ahead
        if loop_time() - asked_at > AHEAD_FRESH_S:
            said = self._facts.ahead()
            if said is not None and not all(target.startswith(TENANT) for target in said.held or ()):
                said = None
            self._ahead = loop_time(), said
        return said


def _is_unchanged(contact: ShardPosition, row: StreamPosition | None, standing: StoredPositions) -> bool:
    """Whether all that a reader wrote on a shard is there still, so that it need not look for what to read again."""
    return standing.is_unchanged or (row is not None and row.fencing_token in contact.claim.fencing_tokens)


def _is_after(mark: RecordPosition | None, other: RecordPosition | None) -> bool:
    """Whether *mark* is after *other*; None is where reading began, before everything."""
    return mark is not None and is_after(mark, other)
