"""Follow a shard to where it is named anew, once it was found there.

A wrong address does nothing to a shard that works, and many who meet the same trouble are one trial.
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
from simplu_worker.shards.schema.schema_check import SchemaState, check_schema
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import loop_time

log = structlog.get_logger(__name__)


class AddressChanger:
    """Tries the addresses of *book* that are not in use, and points the pools to those that are right."""

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
        """Whether a shard answers where it is looked for, as far as is known."""
        pool = self._pools.by_shard_id().get(shard_id)
        return pool is None or pool.is_healthy

    def due_shard_ids(self) -> list[str]:
        """Return the shards with an address that may be tried now."""
        now = self._clock()
        contested = self._book.contested_shard_ids()
        return [
            shard_id
            for shard_id in contested
            if self._book.due_candidate(shard_id, now, is_healthy=self.is_healthy(shard_id)) is not None
        ]

    async def try_candidate(self, shard_id: str) -> None:
        """Try the address at which a shard is named anew, if that is due, and use it if the shard is there."""
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
                    return  # it left meanwhile
                self._book.record_failure(address, self._clock(), draw=self._draw())
                # The trial's pool has set it, of an address that is not in use.
                instruments.SHARD_HEALTHY.labels(shard_id).set(self.is_healthy(shard_id))
                log.warning("shard.address_refused", shard_id=shard_id, place=address.place, error=str(exc))
                return
            if self._book.known_address(shard_id) is None:
                return  # it left meanwhile
            self._book.switch_to(address, self._clock())
            pool = self._pools.ensure_pool(address)
        with contextlib.suppress(RetryableError):  # its health says what came of it
            await pool.probe()

    async def _takes_writes(self, shard_id: str) -> bool:
        """Whether a shard takes writes where it is: one error more does not say that its replica was promoted."""
        try:
            await self._pools.pool_of(shard_id).probe()
        except RetryableError:
            return False
        return True

    async def _check(self, address: ShardAddress) -> None:
        """Raise `RetryableError` unless the shard is there, with its schema, and takes writes."""
        register_secret_of(address)
        # A pool of its own: what the trial meets is none of the trouble of the one in use.
        async with ShardPool(address, size=1).fresh_connection() as connection:
            if await check_schema(connection, address.shard_id) is SchemaState.EMPTY:
                raise ShardUnavailableError(f"shard {address.shard_id}: its database there is empty")
            if await connection.fetchval(QUERIES["is_read_only"]):
                raise ShardUnavailableError(f"shard {address.shard_id}: its server there is read-only")
