"""The state of the world before the first step of each page of docs/runbook/ but that on the first deployment."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from support.postgres.databases import execute
from support.postgres.log_rows import made_up_rows
from support.postgres.tenant_cases import fetch
from support.restaurants import fill_restaurants, queries_text, writing_text
from support.runbook.scene import Scene

from simplu_local.aws_server.server import send_commands
from simplu_local.kinesis.faults import Trim
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.schema_check import ensure_schema

HELD_COUNT: Final = 4
STRAY_SQL: Final = """
INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at, state_changed_at)
SELECT 'fit-oslo', 'fit', 'oslo', 'gym', state, control_at, created_at, state_changed_at
FROM tenants WHERE id = 'smile-berlin';
INSERT INTO resources SELECT 'fit-oslo', 'gym', one.name, one.id, one.data, now(), now()
FROM (VALUES ('settings', 'default', '{}'::jsonb), ('members', 'stray', '{"name": "Kari"}')) AS one (name, id, data);
""" + made_up_rows(
    tenant_id="'fit-oslo'", request_id="'stray'", operation="'create'", resource_type="'members'", resource_id="'stray'"
)


async def add_shard(scene: Scene) -> None:
    await scene.add_server("db-3", database="unused")
    await scene.deploy("db-1", "db-2")


async def shard_failed_over(scene: Scene) -> None:
    await two_shards(scene)
    standby = await scene.add_standby("db-1b", "db-1")
    await standby.catch_up()
    await standby.fall_behind()
    await scene.send("smile-berlin", HELD_COUNT)
    await scene.wait_until_applied()
    await scene.servers["db-1"].kill()
    await scene.send("smile-berlin", HELD_COUNT)


async def shard_restored(scene: Scene) -> None:
    await two_shards(scene)
    await scene.back_up("db-1")
    await scene.send("smile-berlin", HELD_COUNT)
    await scene.wait_until_applied()
    await scene.wait_for_checkpoints()  # what shows that the backup is behind
    await scene.servers["db-1"].kill()
    await scene.send("smile-berlin", HELD_COUNT)


async def restore_tenant(scene: Scene) -> None:
    """Back a shard up, let a tenant go on there, and delete its resources by hand."""
    await scene.deploy("db-1", "db-2")
    tenant = {"businessId": "smile", "locationId": "berlin", "resourceType": "patient", "resourceId": "p1"}
    tenant |= {"timestamp": "2026-01-31T09:00:00Z"}
    await scene.put({**tenant, "operation": "create", "requestId": "made", "data": {"name": "Ada"}})
    await scene.send("smile-berlin", HELD_COUNT)
    await scene.wait_until_applied()
    await scene.back_up("db-1")
    await scene.put({**tenant, "operation": "patch", "requestId": "changed", "data": {"visits": 1}})
    for tenant_id in ("smile-berlin", "fit-oslo", "smile-berlin"):
        await scene.send(tenant_id, HELD_COUNT)
        await scene.wait_until_applied()
    await scene.wait_for_checkpoints()
    await execute(scene.servers["db-1"].url, "DELETE FROM resources WHERE id = 'smile-berlin'")


async def shard_held_for_gap(scene: Scene) -> None:
    """Put a shard back to a base backup, and let the stream have dropped what came after that."""
    await scene.deploy("db-1", "db-2")
    for _ in range(2):  # the second batch leaves a position
        await scene.send("smile-berlin", HELD_COUNT)
        await scene.wait_until_applied()
    await scene.back_up("db-1")
    kept_count = len(scene.sent)
    await scene.send("smile-berlin", HELD_COUNT)
    await scene.wait_until_applied()
    del scene.sent[kept_count:]
    await scene.servers["db-1"].kill()
    await send_commands(scene.shell["AWS_ENDPOINT_URL_KINESIS"], Trim(stream=scene.stream))
    await scene.restore("db-1", "db-1b")
    await execute(scene.servers["db-1b"].url, "UPDATE stream_positions SET token = gen_random_uuid()")  # of unknown age
    scene.replace("shards.json", f"(.*)@{scene.names['db-1:5432']}(.*)", r"\1@db-1b:5432\2")
    await scene.reload_worker()
    await scene.send("smile-berlin", HELD_COUNT)
    await scene.wait_for_log("shard.gap_found")


async def rotate_credentials(scene: Scene) -> None:
    scene.write("pgpass", "*:*:shard:worker:old\n")
    (scene.folder / "pgpass").chmod(0o600)
    await scene.deploy("db-1", "db-2", options="?passfile=/etc/simplu-worker/pgpass")
    for host in ("db-1", "db-2"):
        await scene.require_passwords(host)
    scene.write("api-token", "old-token")
    scene.replace("worker.env", r"API_TOKEN=.*", "API_TOKEN_FILE=/etc/simplu-worker/api-token")


async def upgrade(scene: Scene) -> None:
    for host in ("db-1", "db-2"):
        server = await scene.add_server(host)
        await scene.make_role(host)
        pool = ShardPool(ShardAddress(host, server.url.replace("postgres:", "worker:", 1)), size=1)
        await ensure_schema(pool)
        await fetch(pool, "UPDATE business_types SET digest = ''")
        await pool.close()
    await scene.deploy("db-1", "db-2")


async def stream_near_retention(scene: Scene) -> None:
    await two_shards(scene)
    await scene.servers["db-1"].kill()
    await scene.send("smile-berlin", HELD_COUNT)
    await scene.wait_for_log("shard.held")


async def poisoned_producer(scene: Scene) -> None:
    await scene.deploy("db-1", "db-2")
    tenant = {"businessId": "fit", "locationId": "oslo", "resourceType": "members"}
    tenant |= {"timestamp": "2026-01-31T09:00:00Z"}
    create = tenant | {"operation": "create", "resourceId": "m1"}
    await scene.put(create | {"requestId": "good-1", "data": {"name": "Kari"}})
    await scene.put(tenant | {"operation": "delete", "resourceId": "m1", "requestId": "harm-1"})
    # Together: the page counts both dead letters, and the log of one would tell nothing of the other.
    await scene.put(*(create | {"resourceId": f"m{number + 1}", "requestId": f"bad-{number}"} for number in (1, 2)))
    await scene.wait_for_log("dead_letter.stored")


async def import_tenants(scene: Scene) -> None:
    """Deploy two shards, and start the old server: three restaurants, their queries, the role of the writers."""
    await scene.deploy("db-1", "db-2")
    old = await scene.add_server("old-db", database="pos")
    await fill_restaurants(old.url, restaurants=3, orders=10)
    scene.write("restaurants.sql", queries_text())
    await execute(old.url, "CREATE ROLE app LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO app")


async def export_tenants(scene: Scene) -> None:
    """Import the old server's restaurants."""
    await import_tenants(scene)
    scene.write("restaurants-export.sql", writing_text())
    command = "simplu-worker tenants import restaurants.sql --business-type restaurant --apply --env-file worker.env"
    url = "IMPORT_SOURCE_URL=postgresql://postgres@old-db:5432/pos"
    status, output = await scene.run_lines(f"simplu-worker shards upgrade --env-file worker.env\n{url} {command}")
    assert status == 0, output


async def two_shards(scene: Scene) -> None:
    await scene.deploy("db-1", "db-2")
    await scene.wait_until_applied()


async def tenant_split(scene: Scene) -> None:
    await two_shards(scene)
    await execute(scene.servers["db-1"].url, STRAY_SQL)


async def region_loss(scene: Scene) -> None:
    """Leave two standbys that lack the last operations; the producers have kept them in a file."""
    await two_shards(scene)
    for host in ("db-1", "db-2"):
        standby = await scene.add_standby(f"{host}b", host)
        await standby.catch_up()
        await standby.fall_behind()
    lost = await scene.send("smile-berlin", 3) + await scene.send("fit-oslo", 3)
    await scene.wait_until_applied()
    scene.write("kept-by-producers.jsonl", "".join(f"{json.dumps(record)}\n" for record in lost))
    for host in ("db-1", "db-2"):
        await scene.servers[host].kill()


SCENES: Final[Mapping[str, Callable[[Scene], Awaitable[None]]]] = {
    "add-shard": add_shard,
    "business-types": two_shards,
    "export": export_tenants,
    "import": import_tenants,
    "move-tenant": two_shards,
    "poisoned-producer": poisoned_producer,
    "region-loss": region_loss,
    "remove-shard": two_shards,
    "replace-server": two_shards,
    "restore-tenant": restore_tenant,
    "rotate-credentials": rotate_credentials,
    "shard-failed-over": shard_failed_over,
    "shard-held-for-gap": shard_held_for_gap,
    "shard-restored": shard_restored,
    "stream-near-retention": stream_near_retention,
    "tenant-split": tenant_split,
    "upgrade": upgrade,
}
