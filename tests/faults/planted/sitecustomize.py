"""Make a worker break a promise: Python imports this first where its folder is on PYTHONPATH.

PLANTED names the bug. Each strikes once in a while, so that most of a history is right.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from typing import Any, Final

EVERY: Final = 10  # batches, events or answers with an opportunity
STRAY_SQL: Final = (
    'INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")'
    " VALUES ($1, 'dental', 'note', 'stray', '{}', now(), now()) ON CONFLICT DO NOTHING"
)


def strikes() -> Any:
    numbers = itertools.count(1)
    return lambda: next(numbers) % EVERY == 0


def commit_twice() -> None:
    import msgspec

    from simplu_worker.shards.apply.writer import ShardWriter

    apply, is_due = ShardWriter.apply, strikes()

    @functools.wraps(apply)
    async def applied(self: Any, operations: Sequence[Any], claim: Any = None) -> Any:
        outcomes = await apply(self, operations, claim)
        if is_due():
            again = msgspec.structs.replace(operations[0], request_id=f"{operations[0].request_id}-again")
            await apply(self, [again], None)
        return outcomes

    ShardWriter.apply = applied  # type: ignore[method-assign]


def drop_operation() -> None:
    from simplu_worker.shards.apply.write_attempt import SUCCEEDED
    from simplu_worker.shards.apply.writer import ShardWriter

    apply, is_due = ShardWriter.apply, strikes()

    @functools.wraps(apply)
    async def applied(self: Any, operations: Sequence[Any], claim: Any = None) -> Any:
        if not is_due():
            return await apply(self, operations, claim)
        return [SUCCEEDED, *(await apply(self, operations[1:], claim) if operations[1:] else [])]

    ShardWriter.apply = applied  # type: ignore[method-assign]


def swap_operations() -> None:
    """Apply two operations of a partition key in the wrong order, wherever a batch has two."""
    from simplu_worker.shards.apply.writer import ShardWriter

    apply = ShardWriter.apply

    @functools.wraps(apply)
    async def applied(self: Any, operations: Sequence[Any], claim: Any = None) -> Any:
        places: dict[tuple[str, str], int] = {}
        order = list(range(len(operations)))
        for index, one in enumerate(operations):
            earlier = places.setdefault((one.tenant_id, one.resource_type), index)
            if earlier != index:
                order[earlier], order[index] = index, earlier
                break
        outcomes = await apply(self, [operations[index] for index in order], claim)
        return [outcomes[index] for index in order]

    ShardWriter.apply = applied  # type: ignore[method-assign]


def write_elsewhere() -> None:
    from simplu_worker.shards.apply.writer import ShardWriter

    apply, is_due = ShardWriter.apply, strikes()
    writers: dict[str, Any] = {}

    @functools.wraps(apply)
    async def applied(self: Any, operations: Sequence[Any], claim: Any = None) -> Any:
        own = self._pool.address.shard_id
        writers[own] = self
        outcomes = await apply(self, operations, claim)
        for shard_id, other in writers.items():
            if shard_id != own and is_due():
                async with other._pool.connection() as connection:
                    await connection.execute(STRAY_SQL, operations[0].tenant_id)
        return outcomes

    ShardWriter.apply = applied  # type: ignore[method-assign]


def skip_event() -> None:
    from simplu_worker.feed.destinations import HttpDestination
    from simplu_worker.feed.types import Delivered

    deliver, is_due = HttpDestination._deliver, strikes()

    @functools.wraps(deliver)
    async def delivered(self: Any, event: Any) -> Any:
        return Delivered() if is_due() else await deliver(self, event)

    HttpDestination._deliver = delivered  # type: ignore[method-assign]


def forget_outcome() -> None:
    from simplu_worker.status.lookups import Lookups

    find_operation, is_due = Lookups.find_operation, strikes()

    @functools.wraps(find_operation)
    async def answered(self: Any, *args: Any, **kwargs: Any) -> Any:
        status, members = await find_operation(self, *args, **kwargs)
        return (404, {"status": "unknown"}) if is_due() else (status, members)

    Lookups.find_operation = answered  # type: ignore[method-assign]


BUGS: Final = {
    "commits-twice": commit_twice,
    "drops-operation": drop_operation,
    "swaps-operations": swap_operations,
    "writes-elsewhere": write_elsewhere,
    "skips-event": skip_event,
    "forgets-outcome": forget_outcome,
}
if "PLANTED" in os.environ:
    BUGS[os.environ["PLANTED"]]()
