"""The Postgres shard whose primary is lost again and again, and how a worker learns where it is each time."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

import msgspec
from support.load.testbed import Testbed
from support.postgres.standby import StandbyServer
from support.rows import fetch

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST, free_port

IDS_SQL = "SELECT request_id FROM operations"


class How(StrEnum):
    """How the worker learns where the shard is now."""

    CITRUS = "citrus"
    MULTI_HOST = "multi-host"
    REPLICA = "replica"


class Struck:
    """A shard, by its number from 0, whose primary is lost again and again."""

    def __init__(self, testbed: Testbed, how: How, *, is_synchronous: bool = False, number: int = 0) -> None:
        self.primary = testbed.server(number)
        self.shard_id = list(testbed.stack.servers)[number]
        self.tenants = testbed.tenants_of(self.primary)
        self._testbed = testbed
        self._how = how
        self._is_synchronous = is_synchronous
        self._standby_count = 0

    async def begin(self, replicas: int) -> None:
        testbed = self._testbed
        await self.prepare()
        for _ in range(replicas):
            await testbed.start_worker(self._map_env() if self._how is How.REPLICA else None)
        await testbed.register(testbed.tenants_of())

    async def prepare(self) -> None:
        self.standby = await self._new_standby(None)
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
        if self._how is How.CITRUS:
            self._name_address()
        return earlier, promoted_at

    async def renew(self, earlier: PostgresServer) -> None:
        """Make a standby in the place of *earlier*, which goes; with its address unless Citrus names addresses."""
        await earlier.discard()
        self.standby = await self._new_standby(None if self._how is How.CITRUS else earlier.port)
        if self._how is not How.CITRUS and self.standby.port != earlier.port:
            raise SystemExit(f"somebody else has taken port {earlier.port}")

    async def _new_standby(self, port: int | None) -> StandbyServer:
        self._standby_count += 1
        group, programs = self.primary._group, self.primary._programs
        standby = StandbyServer(
            group, programs, self.primary, name=f"{self.shard_id}_standby_{self._standby_count}", port=port
        )
        await standby.start()
        await standby.wait_streaming()
        await standby.catch_up()
        if self._is_synchronous:
            await standby.make_synchronous()
        return standby

    def _name_address(self) -> None:
        url = self.primary.url
        if self._how is How.MULTI_HOST:
            one, both = f"{HOST}:{self.primary.port}", f"{HOST}:{self.primary.port},{HOST}:{self.standby.port}"
            url = f"{url.replace(one, both)}?target_session_attrs=read-write"
        self._testbed.stack.citrus.registry.shards[self.shard_id].connection_string = url

    def _map_env(self) -> dict[str, str]:
        servers, tenants = self._testbed.stack.servers, self._testbed.tenants
        shards = [{"shardId": shard_id, "connectionString": server.url} for shard_id, server in servers.items()]
        shards[0]["replicaConnectionString"] = self.standby.url
        homes = {tenant.tenant_id: shard_id for shard_id, several in tenants.items() for tenant in several}
        path = self._testbed.stack.group.directory / "shards.json"
        path.write_bytes(msgspec.json.encode({"shards": shards, "tenants": homes}))
        return {"SHARD_MAP_FILE": str(path), "CITRUS_SERVER_URL": "", "CITRUS_API_KEY": ""}


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
