"""A reader of 100 tenants, while 50 of them move, two shards fail over, and one is emptied and taken off the map."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from simplu_router import MapFile, Router, ShardUnavailableError
from support.clients.readers import READER, drop_reader, make_reader
from support.moves.world import OPTIONS, ROWS
from support.postgres.databases import ShardMaker, copy_shard
from support.postgres.standby_pair import Pair, running_pair
from support.postgres.tenant_cases import TenantCase, add_tenant, fetch
from support.shard_map_world import write_map

from simplu_worker.operations.operation import Disposition
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.transfers.moving.mover import Mover
from simplu_worker.transfers.moving.types import Move

TENANTS = [("clinic", f"{number}") for number in range(100)]
ROW_COUNT = 5
VALUES = "SELECT id, \"resourceId\" AS name, (data ->> 'n')::int AS n FROM resources"


@dataclass
class Fleet:
    """The shards as the map names them, the tenants' homes, and the last write of each: its value and request."""

    path: Path
    addresses: dict[str, ShardAddress]
    standby_urls: dict[str, str]
    homes: dict[str, str] = field(default_factory=dict)
    writes: dict[str, tuple[int, str | None]] = field(default_factory=dict)

    def publish(self, *, retired: tuple[str, ...] = ()) -> None:
        pins = {tenant: home for tenant, home in self.homes.items() if home in self.addresses}
        new = self.path.with_suffix(".new")
        write_map(new, *self.addresses.values(), retired=retired, pins=pins, replicas=self.standby_urls)
        new.rename(self.path)

    async def fill(self) -> None:
        async with Pools(size=2) as pools:
            for number, tenant in enumerate(TENANTS):
                key, home = "-".join(tenant), "abc"[number % 3] if number < 60 else "ab"[number % 2]
                pool = pools.ensure_pool(self.addresses[home])
                await add_tenant(pool, tenant)
                await fetch(pool, ROWS, key, ROW_COUNT)
                self.homes[key], self.writes[key] = home, (1, None)
            for address in self.addresses.values():
                await make_reader(pools.ensure_pool(address))
        self.publish()

    async def move(self, moves: list[tuple[tuple[str, str], str]]) -> None:
        """Write to each tenant and move it; the map keeps its former home."""
        async with Pools(size=6) as pools:
            for tenant, target in moves:
                key = "-".join(tenant)
                source, value = self.homes[key], self.writes[key][0] + 1
                case = TenantCase(pools.ensure_pool(self.addresses[source]), tenant)
                pools.ensure_pool(self.addresses[target])
                one = case.operation("update", "1", {"n": value})
                (outcome,) = await case.apply(one)
                assert outcome.disposition is Disposition.APPLIED
                self.writes[key] = value, one.request_id
                move = Move(key, source, target)
                await Mover(pools, ReplicationWaiter(pools), move, OPTIONS, show=lambda _: None).run()
                self.homes[key] = target

    async def promote(self, shard_id: str, pair: Pair) -> None:
        await pair.primary.stop()
        await pair.standby.promote()
        self.addresses[shard_id] = ShardAddress(shard_id, self.standby_urls.pop(shard_id))


async def read_all(router: Router, fleet: Fleet, *, replica: bool) -> int:
    """Read each tenant once; return how many times there was no answer."""
    refused = 0
    for tenant in TENANTS:
        key = "-".join(tenant)
        value, seen = fleet.writes[key]
        try:
            async with router.connection(*tenant, seen=seen, replica=replica and seen is not None) as connection:
                rows = await connection.fetch(VALUES)
        except ShardUnavailableError:
            refused += 1
            continue
        values = {row["name"]: row["n"] for row in rows}
        assert {row["id"] for row in rows} == {key}
        assert (len(values), values["1"] >= value) == (ROW_COUNT, True), (key, values, value)
    return refused


@pytest.fixture(scope="module")
def pairs() -> Iterator[list[Pair]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.contextmanager(running_pair)()) for _ in range(2)]


@pytest.mark.slow(8)
async def test_reader_of_a_fleet_gets_no_empty_foreign_or_old_answer(
    pairs: list[Pair], make_shard: ShardMaker, tmp_path: Path
) -> None:
    addresses, standby_urls = {}, {}
    for shard_id, pair in zip("ab", pairs, strict=True):
        await pair.standby.make_synchronous()
        addresses[shard_id] = await copy_shard(pair.primary, shard_id)
        url = addresses[shard_id].connection_string
        standby_urls[shard_id] = url.replace(f":{pair.primary.port}/", f":{pair.standby.port}/")
    addresses["c"] = await make_shard("c")
    fleet = Fleet(tmp_path / "map.json", addresses, standby_urls)
    await fleet.fill()
    is_over = asyncio.Event()
    rounds: list[int] = []

    async def read() -> None:
        async with Router(MapFile(fleet.path), user=READER, refresh_s=0.5) as router:
            while not is_over.is_set():
                rounds.append(await read_all(router, fleet, replica=len(rounds) % 2 == 1))

    of_c = [tenant for tenant in TENANTS if fleet.homes["-".join(tenant)] == "c"]
    others = [tenant for tenant in TENANTS if tenant not in of_c]
    opposite = {"a": "b", "b": "a"}
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        await fleet.move([(tenant, opposite[fleet.homes["-".join(tenant)]]) for tenant in others[:15]])
        await fleet.promote("a", pairs[0])
        fleet.publish()
        await fleet.move([(tenant, opposite[fleet.homes["-".join(tenant)]]) for tenant in others[:15]])
        await fleet.promote("b", pairs[1])
        fleet.publish(retired=("c",))
        await fleet.move([(tenant, "ab"[number % 2]) for number, tenant in enumerate(of_c)])
        removed = fleet.addresses.pop("c")
        fleet.publish()
        is_over.set()
    async with Pools(size=1) as pools:
        await drop_reader([pools.ensure_pool(removed)])
    async with Router(MapFile(fleet.path), user=READER) as router:
        assert await read_all(router, fleet, replica=False) == 0

    assert len(of_c) == 20
    assert len(rounds) > 5
    assert rounds.count(0) > len(rounds) / 2
