"""Move a shard's pool to another address, once the shard was found there.

A wrong address does no harm to a healthy shard, and concurrent callers for one shard share one trial.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

import structlog

from simplu_worker.errors import RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool, register_secret_of
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.address_book import AddressBook
from simplu_worker.shards.schema.schema_check import check_schema
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import loop_time

log = structlog.get_logger(__name__)


class AddressChanger:
    """Tries the candidates of *book*, and points the pools to those at which a shard was found."""

    def __init__(
        self,
        book: AddressBook,
        pools: Pools,
        *,
        clock: Callable[[], float] = loop_time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._book = book
        self._pools = pools
        self._clock = clock
        self._draw = draw
        self._locks: dict[str, asyncio.Lock] = {}

    def __repr__(self) -> str:
        return f"AddressChanger({self._book!r})"

    def is_healthy(self, shard_id: str) -> bool:
        """Return whether a shard answered last at the address in use; True for a shard without a pool."""
        pool = self._pools.by_shard_id().get(shard_id)
        return pool is None or pool.is_healthy

    def due_shard_ids(self) -> list[str]:
        """Return the shards with a candidate that may be tried now."""
        now = self._clock()
        contested = self._book.contested_shard_ids()
        return [
            shard_id
            for shard_id in contested
            if self._book.due_candidate(shard_id, now, is_healthy=self.is_healthy(shard_id)) is not None
        ]

    async def try_candidate(self, shard_id: str) -> None:
        """Try the candidate of a shard, if it is due, and use it if the shard is there."""
        async with self._locks.setdefault(shard_id, asyncio.Lock()):
            address = self._book.due_candidate(shard_id, self._clock(), is_healthy=self.is_healthy(shard_id))
            if address is None:
                return
            if self._book.is_standby(address) and await self._takes_writes(shard_id):
                return
            try:
                await self._check(address)
            except RetryableError as exc:
                if self._book.known_address(shard_id) is None:
                    return  # the shard left the map during the trial
                self._book.record_failure(address, self._clock(), draw=self._draw())
                # The pool of the trial has set the gauge, for an address that is not in use.
                instruments.SHARD_HEALTHY.labels(shard_id).set(self.is_healthy(shard_id))
                log.warning("shard.address_refused", shard_id=shard_id, place=address.place, error=str(exc))
                return
            if self._book.known_address(shard_id) is None:
                return  # as above
            self._book.switch_to(address, self._clock())
            pool = self._pools.switch_pool(address)
        with contextlib.suppress(RetryableError):  # the pool's health shows the result
            await pool.probe()

    async def _takes_writes(self, shard_id: str) -> bool:
        """Return whether a shard takes writes at the address in use: an error there is no proof of a promotion."""
        try:
            await self._pools.pool_of(shard_id).probe()
        except RetryableError:
            return False
        return True

    async def _check(self, address: ShardAddress) -> None:
        """Raise `RetryableError` unless the shard is there, with its schema, and takes writes."""
        register_secret_of(address)
        # A pool of its own: an error of the trial must not count against the pool in use.
        async with ShardPool(address, size=1).fresh_connection() as connection:
            if await check_schema(connection, address.shard_id) is None:
                raise ShardUnavailableError(f"shard {address.shard_id}: the database at {address.place} is empty")
            if await connection.fetchval(QUERIES["is_read_only"]):
                raise ShardUnavailableError(f"shard {address.shard_id}: the server at {address.place} is read-only")
