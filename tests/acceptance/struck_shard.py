"""The Postgres shard whose primary is lost again and again, and Citrus names the new address."""

from __future__ import annotations

from datetime import UTC, datetime

from support.load.testbed import Testbed
from support.postgres.standby import StandbyServer
from support.rows import fetch

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import free_port

IDS_SQL = "SELECT request_id FROM operations"


class Struck:
    """A shard, by its number from 0, whose primary is lost again and again."""

    def __init__(self, testbed: Testbed, *, number: int = 0) -> None:
        self.primary = testbed.server(number)
        self.shard_id = list(testbed.stack.servers)[number]
        self.tenants = testbed.tenants_of(self.primary)
        self._testbed = testbed
        self._standby_count = 0

    async def begin(self) -> None:
        await self.prepare()
        await self._testbed.start_worker()
        await self._testbed.register(self._testbed.tenants_of())

    async def prepare(self) -> None:
        self.standby = await self._new_standby()
        self._name_address()

    async def promote(self) -> tuple[PostgresServer, datetime]:
        """Let the standby take its primary's place; return the one before and when the new one took writes."""
        earlier = self.primary
        await self.standby.promote()
        promoted_at = datetime.now(UTC)
        self.primary = self.standby
        self._testbed.stack.servers[self.shard_id] = self.primary
        for tenant_id, url in self._testbed.homes.items():
            if url == earlier.url:
                self._testbed.homes[tenant_id] = self.primary.url
        self._name_address()
        return earlier, promoted_at

    async def renew(self, earlier: PostgresServer) -> None:
        """Make a standby in the place of *earlier*, which goes."""
        await earlier.discard()
        self.standby = await self._new_standby()

    async def _new_standby(self) -> StandbyServer:
        self._standby_count += 1
        group, programs = self.primary._group, self.primary._programs
        standby = StandbyServer(group, programs, self.primary, name=f"{self.shard_id}_standby_{self._standby_count}")
        await standby.start()
        await standby.wait_streaming()
        await standby.catch_up()
        return standby

    def _name_address(self) -> None:
        self._testbed.stack.citrus.registry.shards[self.shard_id].connection_string = self.primary.url


async def left_by(server: PostgresServer) -> set[str]:
    """Return the request ids in what a killed server left, by starting it where nobody looks for it; it is ended."""
    port, server.port = server.port, free_port()
    await server.start()
    found = await request_ids(server.url)
    await server.kill()
    server.port = port
    return found


async def request_ids(url: str) -> set[str]:
    return {one[0] for one in await fetch(url, IDS_SQL)}
