"""Group commit: batches that wait for the same Postgres shard share a transaction.

Batches that arrive while no connection is free join the next transaction; with a free one a batch starts at once. How
large a group is depends on the time that it is expected to take (`ShardTime`): every batch waits for the whole group.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, islice
from typing import Final

from simplu_worker.fairness import Demand, ShardTime
from simplu_worker.operations.operation import Operation, Outcome
from simplu_worker.shards.types import PositionChangedError, PositionClaim
from simplu_worker.telemetry.spans import Span, current_batch
from simplu_worker.timing.clock import loop_time

GROUP_MAX_COUNT: Final = 7500  # operations that may share a transaction; more only in one batch
GROUP_MAX_BYTES: Final = 4 * 1024 * 1024  # of records; the same


class CommitBatch:
    """Operations, applied in order, and the claims that each of their transactions writes.

    *spans* are those of callers. A part of a batch has its *root*, which counts how often they have waited in vain for
    rows of tenants.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        claims: Sequence[PositionClaim] = (),
        spans: Sequence[Span] = (),
        root: CommitBatch | None = None,
    ) -> None:
        self.operations = operations
        self.claims = claims
        self.spans = spans
        self._root = root  # itself would be a cycle: its operations would wait for the garbage collector
        self.lock_wait_count = 0

    @property
    def root(self) -> CommitBatch:
        """The batch that this one is a part of, or itself."""
        return self._root or self

    def part(self, indexes: Sequence[int]) -> CommitBatch:
        """Return the operations at *indexes* as a batch of their own, with all claims."""
        return CommitBatch([self.operations[index] for index in indexes], self.claims, self.spans, self.root)

    def close(self) -> None:
        """Fix the batch's contents; to be called when its transaction has begun, before `operations` is read."""


class Part:
    """One caller's batch, and the future of its outcomes; None: the caller must apply it alone."""

    def __init__(self, operations: Sequence[Operation], claim: PositionClaim | None) -> None:
        self.operations = operations
        self.claims = () if claim is None else (claim,)
        self.spans = () if (span := current_batch()) is None else (span,)
        self.demand = Demand.of(operations)
        self.outcomes: asyncio.Future[list[Outcome] | None] = asyncio.get_running_loop().create_future()


class CommitGroup(CommitBatch):
    """The batch of all parts that wait when its first transaction begins: *take_parts* is called then, once."""

    def __init__(self, take_parts: Callable[[], list[Part]], clock: Callable[[], float]) -> None:
        super().__init__(())
        self.parts: list[Part] = []
        self.began_at = 0.0
        self._clock = clock
        self._take_parts: Callable[[], list[Part]] | None = take_parts

    def close(self) -> None:
        """Take the waiting parts, at the first call."""
        if self._take_parts is not None:
            take_parts, self._take_parts = self._take_parts, None
            self.began_at = self._clock()
            self.parts = take_parts()
            self.operations = list(chain.from_iterable(part.operations for part in self.parts))
            self.claims = [claim for part in self.parts for claim in part.claims]
            self.spans = [span for part in self.parts for span in part.spans]


class GroupCommit:
    """The batches that wait for one Postgres shard."""

    def __init__(
        self,
        apply: Callable[[CommitBatch], Awaitable[list[Outcome]]],
        time: ShardTime,
        *,
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._apply = apply
        self._time = time
        self._clock = clock
        self._waiting: deque[Part] = deque()
        self._forming: asyncio.Task[None] | None = None  # the transaction has not begun
        self._groups: dict[asyncio.Task[None], CommitGroup] = {}  # all running groups

    async def apply(self, operations: Sequence[Operation], claim: PositionClaim | None) -> list[Outcome]:
        """Apply a batch, and return the outcomes.

        Raises as *apply* does; after a cancellation its outcome is unknown.
        """
        part = Part(operations, claim)
        self._waiting.append(part)
        self._count_waiting()
        self._start_group()
        try:
            outcomes = await part.outcomes
        except asyncio.CancelledError:
            self._cancel_part(part)
            raise
        if outcomes is None:
            return await self._apply(CommitBatch(part.operations, part.claims, part.spans))
        return outcomes

    def _count_waiting(self) -> None:
        self._time.waiting_count = len(self._waiting)

    def _start_group(self) -> None:
        if self._waiting and self._forming is None:
            group = CommitGroup(self._take_parts, self._clock)
            task = asyncio.get_running_loop().create_task(self._run(group), name="group commit")
            self._forming = task
            self._groups[task] = group
            task.add_done_callback(self._groups.pop)

    def _take_parts(self) -> list[Part]:
        parts: list[Part] = []
        count = size_bytes = 0
        cost_s, turn_s, is_shared = 0.0, self._time.turn_s(self._clock()), len(self._waiting) > 1
        while self._waiting:
            part = self._waiting[0]
            count += len(part.operations)
            size_bytes += part.demand.size_bytes
            cost_s += self._time.batch_cost_s(part.demand) if is_shared else 0.0
            if parts and (count > GROUP_MAX_COUNT or size_bytes > GROUP_MAX_BYTES or cost_s > turn_s):
                break
            parts.append(self._waiting.popleft())
        self._count_waiting()
        self._time.together_count = len(parts)
        self._forming = None
        self._start_group()
        return parts

    async def _run(self, group: CommitGroup) -> None:
        try:
            outcomes = await self._apply(group)
        except BaseException as exc:
            self._fail_parts(group, exc)
            if not isinstance(exc, Exception):
                raise
        else:
            if outcomes:
                self._time.note([part.demand for part in group.parts], self._clock() - group.began_at)
            rest = iter(outcomes)
            for part in group.parts:
                own = list(islice(rest, len(part.operations)))
                if not part.outcomes.done():
                    part.outcomes.set_result(own)

    def _fail_parts(self, group: CommitGroup, exc: BaseException) -> None:
        if self._forming is asyncio.current_task():
            self._forming = None
            group.parts, self._waiting = list(self._waiting), deque()
            self._count_waiting()
        behind = exc.claims if isinstance(exc, PositionChangedError) else None
        for part in group.parts:
            if part.outcomes.done():
                continue
            if behind is not None and not any(claim in behind for claim in part.claims):
                # Its caller applies the batch again, alone.
                part.outcomes.set_result(None)
            elif isinstance(exc, asyncio.CancelledError):
                part.outcomes.cancel()
            else:
                part.outcomes.set_exception(exc)

    def _cancel_part(self, part: Part) -> None:
        if part in self._waiting:
            self._waiting.remove(part)
            self._count_waiting()
            if not self._waiting and self._forming is not None:
                self._forming.cancel()
                self._forming = None
            return
        for task, group in self._groups.items():
            if part in group.parts and all(one.outcomes.cancelled() for one in group.parts):
                task.cancel()
