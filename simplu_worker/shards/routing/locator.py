"""Who names the shard of a tenant: Citrus, or a map."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.address_book import AddressBook
from simplu_worker.shards.routing.citrus import Registration
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.shards.routing.shard_map_changes import MapChange, change_of


class Locator(Protocol):
    """Who names the shard of a tenant: Citrus or a static map. Both raise `RetryableError` for no answer.

    `book` has the addresses to use; those that are named pass through it.
    """

    address_book: AddressBook

    async def locate(self, tenant_id: str) -> ShardAddress | None:
        """Return the shard that is named for the tenant; None is a definite "not registered"."""

    async def register(self, business_id: str, location_id: str, business_type: str) -> Registration:
        """Register a tenant, or learn where it was registered before."""

    async def list_possible_homes(self, tenant_ids: Iterable[str]) -> dict[str, list[ShardAddress]]:
        """Return where each tenant may live or have lived."""

    async def list_fallback_homes(self, tenant_ids: Iterable[str]) -> dict[str, list[ShardAddress]]:
        """Return the other shards, for each tenant: asked as well, but nobody waits for those that do not answer."""

    async def list_shards(self) -> list[ShardAddress]:
        """Return every shard that is known."""


class StaticMap:
    """A map from a file or of one shard, as a locator: every tenant has its place, registered or not."""

    def __init__(self, shard_map: ShardMap) -> None:
        self.map = shard_map
        self.address_book = AddressBook()
        for shard in shard_map.shards:
            self.address_book.add(shard.address, standby=shard.standby_address)

    def replace(self, shard_map: ShardMap) -> MapChange:
        """Go by another map from now on, and return what that changes."""
        change = change_of(self.map, shard_map)
        self.map = shard_map
        for shard in change.removed:
            self.address_book.remove(shard.shard_id)
        for shard in (*change.added, *change.readdressed):
            self.address_book.update(shard.address, standby=shard.standby_address)
        return change

    async def locate(self, tenant_id: str) -> ShardAddress | None:
        """Return the shard the tenant is pinned to or falls on."""
        return self._address_of(self.map.shard_of(tenant_id))

    async def register(self, business_id: str, location_id: str, business_type: str) -> Registration:  # noqa: ARG002
        """Return the shard the map names; there is nobody to tell, so nobody knows whether the tenant is new."""
        return Registration(self._address_of(self.map.shard_of(tenant_id_of(business_id, location_id))), is_new=False)

    async def list_possible_homes(self, tenant_ids: Iterable[str]) -> dict[str, list[ShardAddress]]:
        """Return the pins and the shards that each key had for every smaller number of shards."""
        return {
            tenant_id: [self._address_of(shard) for shard in self.map.possible_homes(tenant_id)]
            for tenant_id in tenant_ids
        }

    async def list_fallback_homes(self, tenant_ids: Iterable[str]) -> dict[str, list[ShardAddress]]:
        """Return the shards that are no home by this map: by one before it, with other pins, one may have been."""
        return {
            tenant_id: [self._address_of(shard) for shard in self.map.shards if shard.shard_id not in homes]
            for tenant_id in tenant_ids
            if (homes := {shard.shard_id for shard in self.map.possible_homes(tenant_id)})
        }

    async def list_shards(self) -> list[ShardAddress]:
        """Return every shard of the map."""
        return [self._address_of(shard) for shard in self.map.shards]

    def _address_of(self, shard: MappedShard) -> ShardAddress:
        """Return where a shard is: at the address in the map, or at its replica's, which took its place."""
        return self.address_book.known_address(shard.shard_id) or shard.address
