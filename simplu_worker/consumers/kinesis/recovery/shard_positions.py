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
from simplu_worker.consumers.kinesis.holding.tenant_set import NAME_PREFIX
from simplu_worker.consumers.kinesis.recovery.recovery_plan import (
    Lineage,
    ReplayStart,
    format_position,
    ignoring_pending,
    missing_parent_records,
    replay_start,
)
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, RecordPosition, is_after
from simplu_worker.errors import RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import PositionClaim, StoredPositions, StreamPosition
from simplu_worker.timing.clock import UtcClock, loop_time

WRITE_AFTER_S: Final = 30.0  # a row not written for so long, while the reader went on
AHEAD_MAX_AGE_S: Final = 1.0
CLOCKS_APART_MOST: Final = timedelta(hours=1)
MOVED_MARGIN_S: Final = 10.0  # between two looks at different clocks

log = structlog.get_logger(__name__)


class ReaderProgress(msgspec.Struct, frozen=True):
    """How far a reader is: behind *owed_from* something may be owed; None is where it began to read."""

    safe_checkpoint: RecordPosition | None
    is_finished: bool = False


class PositionRow(msgspec.Struct, frozen=True):
    """What a row says of how far a reader is; its members are those of the row."""

    owed_from: str = ""
    read_to: str | None = None
    held: tuple[str, ...] | None = None


class Backfill(msgspec.Struct, frozen=True):
    """What is to be read again for all tenants of a Postgres shard: first of *parents*, then behind *before*."""

    before: RecordPosition | None
    parent_records: tuple[ParentRecords, ...]


class ShardPosition:
    """One reader and one Postgres shard. Whoever writes the row, or decides about it, has the turn."""

    def __init__(self, shard_id: str, claim: PositionClaim) -> None:
        self.shard_id = shard_id
        self.claim = claim
        self.lock = asyncio.Lock()
        self.was_read = False  # its row was read before
        self.is_current = False  # its row is known, and what that lacks is being read again
        self.parents_had_ended = False  # whether the parents had ended, before the row was read
        self.written_at = float("-inf")  # monotonic

    def forget_row(self) -> None:
        """Have the row read anew, and what it lacks found anew."""
        self.is_current = False
        self.claim.fencing_tokens = []

    def __repr__(self) -> str:
        return f"Contact({self.shard_id}, {'adopted' if self.is_current else 'unknown'}, {self.claim.owed_from})"


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
    began_behind: RecordPosition | None
    checkpoint: RecordPosition | None
    predecessor_tenants: AbstractSet[str]
    read_to: Callable[[], RecordPosition | None]
    progress: Callable[[], ReaderProgress]
    ahead_row: Callable[[], PositionRow | None]
    find_first_since: Callable[[datetime], Awaitable[RecordPosition | None]]
    confirm_lease: Callable[[], Awaitable[bool]]
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
        self._reader = facts
        self._tenant_wait = tenant_wait
        self._utc = utc
        self._positions: dict[str, ShardPosition] = {}
        self._began_at = loop_time()
        self._ahead: tuple[float, PositionRow | None] = (
            float("-inf"),
            None,
        )  # without its owed_from, which is of the moment

    def __repr__(self) -> str:
        return f"Contacts({list(self._positions.values())})"

    def position_on(self, shard_id: str) -> ShardPosition:
        """Return the contact with a Postgres shard."""
        contact = self._positions.get(shard_id)
        if contact is None:
            claim = PositionClaim(self._reader.stream_name, self._reader.stream_shard_id)
            contact = self._positions[shard_id] = ShardPosition(shard_id, claim)
        return contact

    def current_positions(self) -> list[ShardPosition]:
        """Return the contacts with shards whose row is known."""
        return [contact for contact in self._positions.values() if contact.is_current]

    def prepare_claim(self, contact: ShardPosition) -> PositionClaim:
        """Return what the next write into the row says: where the reader is before it, not behind it.

        What a batch comes to is known too late, and an operation of it may not be applied.
        """
        claim, progress = contact.claim, self._reader.progress()
        said = self._row_of(progress)
        claim.owed_from, claim.read_to, claim.held = said.owed_from, said.read_to, said.held
        claim.owed_since = None if progress.safe_checkpoint is None else progress.safe_checkpoint.arrived_at
        contact.written_at = loop_time()
        return claim

    def is_write_due(self, contact: ShardPosition, *, within_s: float = WRITE_AFTER_S) -> bool:
        """Tell whether a row that is known was not written for a while and would say something else now."""
        if not contact.is_current or loop_time() - contact.written_at < within_s:
            return False
        claim = contact.claim
        return PositionRow(claim.owed_from, claim.read_to, claim.held) != self._row_of(self._reader.progress())

    def _row_of(self, progress: ReaderProgress) -> PositionRow:
        """Return what a row would say now: what is owed, and where some tenants are owed what is older, how far."""
        if progress.is_finished:
            return PositionRow(SHARD_END.checkpoint)
        owed_from, ahead = format_position(progress.safe_checkpoint), self._recent_ahead_row()
        return PositionRow(owed_from) if ahead is None else msgspec.structs.replace(ahead, owed_from=owed_from)

    async def write_final_position(self, contact: ShardPosition) -> None:
        """Write how far the reader is at its end, beside no effect; not where that would have to be waited for.

        Nor where the row is another's, or none answers: who comes next then reads a little again.
        """
        self._ahead = (float("-inf"), None)
        is_free = self._gateway.is_up(contact.shard_id) and not contact.lock.locked()
        if not is_free or not self.is_write_due(contact, within_s=0.0):
            return
        async with contact.lock:
            if not contact.is_current:
                return
            with contextlib.suppress(RetryableError):
                changed = await self._gateway.write_positions(contact.shard_id, [self.prepare_claim(contact)])
                contact.is_current = not changed

    async def confirm_lease(self) -> bool:
        """Tell whether the lease is still the reader's, as far as anybody answers."""
        return await self._reader.confirm_lease()

    async def reconcile(self, contact: ShardPosition) -> Backfill | None:
        """Read what the shard knows, and return what has to be read again of the stream; None when nothing has.

        To be called in the contact's turn. Raises `RetryableError` when that cannot be found out.
        """
        claim, lineage = contact.claim, self.lineage()  # first: what had ended before the rows were read
        shard_id, is_first = contact.shard_id, not contact.was_read
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
        return await self.reconcile_with(contact, lineage, standing)

    def lineage(self) -> Lineage:
        """Return what the stream shard continues."""
        return self._reader.lineage()

    def must_reread(self, contact: ShardPosition, lineage: Lineage, standing: StoredPositions) -> bool:
        """Tell whether a row has to be read anew: it is not as it was left, or the parents have ended since."""
        row = standing.rows.get(self._reader.stream_shard_id)
        if (row.fencing_token not in contact.claim.fencing_tokens) if row is not None else contact.claim.fencing_tokens:
            return True
        return lineage.is_ended and not contact.claim.parents_done and not self._holds.has_parent_records

    async def reconcile_with(
        self, contact: ShardPosition, lineage: Lineage, standing: StoredPositions
    ) -> Backfill | None:
        """Do what `adopt` does, with an answer of the shard that is there already.

        At the first contact all that came since the reader began is in its hands, unless a tenant was moved here
        meanwhile; later it may have been applied, and lost, unless the row is as the reader left it.
        """
        row = standing.rows.get(self._reader.stream_shard_id)
        is_in_hand = not contact.was_read and not self._was_tenant_moved_in(standing)
        own = self._reader.began_behind if is_in_hand else self._reader.read_to()
        before, is_unchanged = None, _is_unchanged(contact, row, standing)
        if own is not None and not is_unchanged:
            place = replay_start(
                row,
                standing.first_tenant_at,
                tenant_wait=self._tenant_wait,
                started_at=self._reader.started_at,
                covers=partial(self._covers, is_met=contact.was_read),
                now=self._utc(),
            )
            before = await self._resolve_replay_start(place, own)
        are_done = row is not None and row.parents_done
        is_sent_again = not is_unchanged and self._holds.is_rereading_parents_for(
            contact.shard_id
        )  # and so may be lost again
        is_alone = before is None and not is_sent_again
        parents = () if are_done else self._missing_parent_records(lineage, standing, is_alone=is_alone)
        contact.claim.fencing_tokens = [] if row is None else [row.fencing_token]
        contact.claim.move_token = standing.move_token
        contact.parents_had_ended = lineage.is_ended
        contact.claim.parents_done = are_done or (lineage.is_ended and not parents)
        contact.was_read = contact.is_current = True
        if before is None and not parents:
            return None
        self._ahead = (float("-inf"), None)
        instruments.SHARD_REFILLS.labels(contact.shard_id).inc()
        log.warning(
            "shard.refilling",
            shard_id=contact.shard_id,
            stream_shard_id=self._reader.stream_shard_id,
            owed_from=format_position(before or own),
            read_to=format_position(own),
            parents=[records.stream_shard_id for records in parents],
        )
        return Backfill(before or own, parents)

    def _missing_parent_records(
        self, lineage: Lineage, standing: StoredPositions, *, is_alone: bool
    ) -> tuple[ParentRecords, ...]:
        """Return which records of the ancestors are to be read again; *is_alone* when nothing else is.

        None while the ancestors lack only what is held here until they have applied it, and nothing of that was sent
        from here, as when it is just being read again.
        """
        if is_alone and not lineage.is_ended:
            rest = ignoring_pending(standing, self._holds.are_waiting_for_parents)
            if not missing_parent_records(lineage, rest, tenant_wait=self._tenant_wait):
                return ()
        return missing_parent_records(lineage, standing, tenant_wait=self._tenant_wait)

    def _was_tenant_moved_in(self, standing: StoredPositions) -> bool:
        """Whether a tenant was moved to a shard since the reader began, which may have sent it something elsewhere."""
        return (
            standing.last_move_age_s is not None
            and standing.last_move_age_s < loop_time() - self._began_at + MOVED_MARGIN_S
        )

    def _covers(self, names: AbstractSet[str], owed_from: RecordPosition | None, *, is_met: bool) -> bool:
        """Tell whether the reader sees to it that tenants get everything behind *owed_from*.

        By holding them, or, before it has sent anything there, by having held them since it began.
        """
        facts = self._reader
        if not is_met and names <= facts.predecessor_tenants and not _is_after(facts.checkpoint, owed_from):
            return True
        holds = [self._holds.named_hold_of(name) for name in names]
        return all(hold is not None and not _is_after(hold.reached, owed_from) for hold in holds)

    async def _resolve_replay_start(self, place: ReplayStart, own: RecordPosition) -> RecordPosition | None:
        """Return *place* where that is before *own*, which is behind where reading began."""
        if isinstance(place, datetime):
            # Where the reader took over that is by its clock, for nobody knows when that record arrived.
            if own.arrived_at < place - CLOCKS_APART_MOST:
                return None
            place = await self._reader.find_first_since(place)
        return place if place is not None and is_after(own, place) else None

    def mark_parents_read(self, shard_id: str) -> None:
        """Note that all that the parents owed a shard is there; the next write says so, if they had ended before."""
        contact = self.position_on(shard_id)
        contact.claim.parents_done = contact.claim.parents_done or (contact.is_current and contact.parents_had_ended)

    def invalidate_parent_rows(self) -> list[ShardPosition]:
        """Have the rows read anew that do not say yet that the parents are done; return whose.

        What they owed no more may have been lost since.
        """
        doubtful = [one for one in self._positions.values() if one.is_current and not one.claim.parents_done]
        for contact in doubtful:
            contact.is_current = False
        return doubtful

    def _recent_ahead_row(self) -> PositionRow | None:
        """Return whom the reader owes something older than all others, where a row has room for their names."""
        if self._holds.has_whole_shard_hold:
            return None  # whose tenants nobody knows by name
        asked_at, said = self._ahead
        if loop_time() - asked_at > AHEAD_MAX_AGE_S:
            said = self._reader.ahead_row()
            if said is not None and not all(target.startswith(NAME_PREFIX) for target in said.held or ()):
                said = None
            self._ahead = loop_time(), said
        return said


def _is_unchanged(contact: ShardPosition, row: StreamPosition | None, standing: StoredPositions) -> bool:
    """Whether all that a reader wrote on a shard is there still, so that it need not look for what to read again."""
    return standing.is_unchanged or (row is not None and row.fencing_token in contact.claim.fencing_tokens)


def _is_after(mark: RecordPosition | None, other: RecordPosition | None) -> bool:
    """Whether *mark* is after *other*; None is where reading began, before everything."""
    return mark is not None and is_after(mark, other)
