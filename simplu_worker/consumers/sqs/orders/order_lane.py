"""A lane of order events: what many messages bring for one Postgres shard, a batch of them in one transaction.

A chain is what must stay in order: a message group of a FIFO queue, or one message of a standard queue. Why its order
is kept: a lane is first in, first out with one batch in flight; and what stops one operation of a chain (the shard does
not take it, its tenant is not there, it fails by itself) stops all of the chain that are behind it in the lane.

What was applied is answered when it is as safe as the shard can make it, for its message is deleted then. The next
batch does not wait for that.

A message that is handled again while its operation is still in the lane finds it there. So whoever hands operations
over may stop waiting for a shard that does not answer, and nothing is applied twice for that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import msgspec
import structlog

from simplu_worker.consumers.outcome_counts import count_outcomes
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now

BATCH_MAX_COUNT: Final = 1000
BATCH_MAX_BYTES: Final = 1024 * 1024  # more only where one operation has more
STUCK_AFTER_S: Final = 1.0  # a shard that needs longer for a batch is not waited for
KEPT_MAX_COUNT: Final = 10_000  # answers that nobody has fetched, whose messages went elsewhere

log = structlog.get_logger(__name__)


class Crash(msgspec.Struct, frozen=True):
    """Applying one operation ended with an error that nobody foresaw."""

    error: Exception


Answer: TypeAlias = Outcome | RetryableError | Crash

BEHIND = Outcome(disposition=Disposition.HOLD)  # of one behind another of its chain that did not get through
IN_LOG = frozenset({Disposition.APPLIED, Disposition.DUPLICATE})


class OrderEntry(msgspec.Struct, frozen=True, eq=False):
    """The operation of one message on its way; *answer* is set once it is known."""

    message_id: str
    chain: str
    operation: Operation
    answer: asyncio.Future[Answer]


class _Landing(msgspec.Struct, frozen=True, eq=False):
    """What a batch has left in the log since *landed_at*, and is yet to be safe there."""

    landed_at: float
    pairs: Sequence[tuple[OrderEntry, Outcome]]

    def answer(self, error: RetryableError | Crash | None = None) -> None:
        """Answer each with its outcome, or with the error."""
        for entry, outcome in self.pairs:
            entry.answer.set_result(error or outcome)


class OrderLane:
    """The operations of one queue for one shard. Its flights are tasks of *tasks*, and end with them."""

    def __init__(
        self,
        shard_id: str,
        gateway: ShardGateway,
        tasks: asyncio.TaskGroup,
        *,
        queue_name: str,
        utc: UtcClock = utc_now,
    ) -> None:
        self.shard_id = shard_id
        self._gateway = gateway
        self._tasks = tasks
        self._queue_name = queue_name
        self._utc = utc
        self._entries: dict[str, OrderEntry] = {}  # by message id: queued, in flight, or answered and not fetched
        self._queue: deque[OrderEntry] = deque()
        self._batch: list[OrderEntry] = []
        self._flight: asyncio.Task[None] | None = None
        self._landings: dict[asyncio.Task[None], _Landing] = {}  # in order
        self._sent_at = float("inf")
        self._singles = 0  # operations to be applied one by one, as their batch crashed
        self._failure_count = 0

    def __repr__(self) -> str:
        return (
            f"OrderLane({self.shard_id}, batch={len(self._batch)}, queue={len(self._queue)}, "
            f"landed={sum(len(landing.pairs) for landing in self._landings.values())})"
        )

    def __len__(self) -> int:
        """Count what is on its way, and what has got there and is not safe yet."""
        return len(self._batch) + len(self._queue) + sum(len(landing.pairs) for landing in self._landings.values())

    @property
    def is_stuck(self) -> bool:
        """Whether a batch has been in flight, or not safe, for so long that it is not worth while to wait for it."""
        since = min([self._sent_at, *(landing.landed_at for landing in self._landings.values())])
        return loop_time() - since > STUCK_AFTER_S

    def operations(self) -> Iterable[Operation]:
        """Return what is on its way."""
        return [entry.operation for entry in (*self._batch, *self._queue)]

    def submit(self, chain: str, operations: Iterable[tuple[str, Operation]]) -> list[OrderEntry]:
        """Append operations of a chain, by message id, in their order; return their entries.

        One that is in the lane already keeps its place, or its answer, unless that says to try it again.
        """
        entries = [self._entry(chain, message_id, operation) for message_id, operation in operations]
        if self._queue and self._flight is None:
            self._flight = self._tasks.create_task(self._fly(), name=f"orders:{self.shard_id}")
        return entries

    def collect(self, entry: OrderEntry) -> Answer | None:
        """Take the answer of an entry out of the lane; None while there is none."""
        if not entry.answer.done():
            return None
        if self._entries.get(entry.message_id) is entry:
            del self._entries[entry.message_id]
        return entry.answer.result()

    def cancel(self) -> None:
        """End the flight under way; whether its batch was committed is then unknown."""
        if self._flight is not None:
            self._flight.cancel()
        for task in self._landings:
            task.cancel()

    def _entry(self, chain: str, message_id: str, operation: Operation) -> OrderEntry:
        entry = self._entries.get(message_id)
        if entry is None or (entry.answer.done() and not _is_final(entry.answer.result())):
            entry = OrderEntry(message_id, chain, operation, asyncio.get_running_loop().create_future())
            self._entries[message_id] = entry
            self._queue.append(entry)
        return entry

    async def _fly(self) -> None:
        """Apply batch after batch until there is nothing left."""
        try:
            await asyncio.sleep(0)  # those that are handed over at the same time come along
            while self._queue:
                await self._apply_next()
        finally:
            self._flight = None
            self._sent_at = float("inf")

    async def _apply_next(self) -> None:
        self._batch = self._next_batch()
        self._sent_at = loop_time()
        operations = [entry.operation for entry in self._batch]
        try:
            if self._failure_count:
                await self._make_sure()
            outcomes = await self._gateway.apply(self.shard_id, operations)
        except RetryableError as exc:
            self._failure_count += 1
            failed = [*self._batch, *self._queue]
            self._queue.clear()
            for entry in failed:
                entry.answer.set_result(exc)
        except Exception as exc:  # noqa: BLE001  # one message's bug must not end the others; it has tries, then a letter
            self._crashed(exc)
        else:
            self._failure_count = 0
            count_outcomes(operations, outcomes, now=self._utc())
            self._disperse(outcomes)
        finally:
            self._batch = []
            self._forget_unfetched()

    def _next_batch(self) -> list[OrderEntry]:
        batch: list[OrderEntry] = []
        room_bytes = BATCH_MAX_BYTES
        most = 1 if self._singles else BATCH_MAX_COUNT
        while self._queue and len(batch) < most:
            room_bytes -= self._queue[0].operation.size_bytes
            if batch and room_bytes < 0:
                break
            batch.append(self._queue.popleft())
        self._singles = max(0, self._singles - 1)
        return batch

    async def _make_sure(self) -> None:
        """Look, within seconds, whether a shard that failed is back; if not, whether a tenant is elsewhere now.

        Raises `RetryableError` while it is not.
        """
        try:
            await self._gateway.probe(self.shard_id)
        except RetryableError:
            tenant_ids = list(dict.fromkeys(entry.operation.tenant_id for entry in self._batch))
            try:
                await self._gateway.find_again(tenant_ids[self._failure_count % len(tenant_ids)])
            except (RetryableError, PermanentError) as exc:
                log.debug("orders.not_found_again", shard_id=self.shard_id, error=str(exc))
            raise

    def _crashed(self, exc: Exception) -> None:
        """Find which of a batch it was, by applying each by itself; the rest of its chain waits."""
        if len(self._batch) > 1:
            self._singles = len(self._batch)
            self._queue.extendleft(reversed(self._batch))
            return
        (entry,) = self._batch
        log.error(
            "order.failed",
            queue=self._queue_name,
            shard_id=self.shard_id,
            message_id=entry.message_id,
            business_id=entry.operation.business_id,
            location_id=entry.operation.location_id,
            error=type(exc).__name__,
            exc_info=exc,
        )
        entry.answer.set_result(Crash(exc))
        self._stop({entry.chain})

    def _disperse(self, outcomes: Sequence[Outcome]) -> None:
        """Answer the entries of the batch.

        One that fails by itself holds its tenant's later ones in the batch; those of other chains are tried again.
        """
        pairs = list(zip(self._batch, outcomes, strict=True))
        failing = [entry for entry, outcome in pairs if outcome.disposition is Disposition.UNEXPECTED]
        failing_tenants = {entry.operation.tenant_id for entry in failing}
        stopped = {entry.chain for entry in failing}
        again: list[OrderEntry] = []
        landed: list[tuple[OrderEntry, Outcome]] = []
        for entry, outcome in pairs:
            is_held = outcome.disposition is Disposition.HOLD
            if is_held and entry.operation.tenant_id in failing_tenants and entry.chain not in stopped:
                again.append(entry)
                continue
            if is_held:
                stopped.add(entry.chain)
            if outcome.disposition in IN_LOG:
                landed.append((entry, outcome))
            else:
                entry.answer.set_result(outcome)
        self._queue.extendleft(reversed(again))
        self._stop(stopped)
        if landed:
            landing = _Landing(loop_time(), landed)
            task = self._tasks.create_task(self._land(landing), name=f"orders:{self.shard_id}:landing")
            self._landings[task] = landing
            task.add_done_callback(self._landings.pop)

    async def _land(self, landing: _Landing) -> None:
        """Answer a batch once it is safe; while that cannot be known its messages come again, and are found applied."""
        try:
            await self._gateway.wait_until_safe(self.shard_id, [entry.operation for entry, _ in landing.pairs])
        except RetryableError as exc:
            landing.answer(exc)
        except Exception as exc:  # a bug must not end the others; the messages have tries, then letters
            log.exception("order.failed", queue=self._queue_name, shard_id=self.shard_id, error=type(exc).__name__)
            landing.answer(Crash(exc))
        else:
            landing.answer()

    def _stop(self, chains: set[str]) -> None:
        """Answer what is queued of *chains*: it is behind one that did not get through."""
        if not chains:
            return
        behind = [entry for entry in self._queue if entry.chain in chains]
        for entry in behind:
            entry.answer.set_result(BEHIND)
        if behind:
            self._queue = deque(entry for entry in self._queue if entry.chain not in chains)

    def _forget_unfetched(self) -> None:
        if len(self._entries) - len(self) > KEPT_MAX_COUNT:
            self._entries = {key: entry for key, entry in self._entries.items() if not entry.answer.done()}


def _is_final(answer: Answer) -> bool:
    """Whether trying the operation again would say the same, or is for the one who fetches the answer to decide."""
    if isinstance(answer, Outcome):
        return answer.disposition is not Disposition.HOLD
    return isinstance(answer, Crash)
