"""The reference's single database of restaurants is imported into four shards under load, and every row is compared.

    python tests/acceptance/importing.py [--restaurants 50] [--orders 60] [--rate 50] [--kills 0]

Starts the embedded stack with four Postgres shards and the worker, and a fifth Postgres server with the database of
`tests/support/restaurants.py`. Tenants that the shards have get operations all the time. `simplu-worker tenants import`
makes its plan, and imports; with `--kills` it is killed, and run again. From the moment when the restaurants are
registered they get operations too, which are held until their tenant is active. Exit status 0 only if the checksums are
equal, every imported row is that of the source by a comparison that knows nothing of the importer, and every operation
was applied once, in order, with no dead letter. `--restaurants 200 --orders 1105` is the size of the reference: 5,003
rows each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import asyncpg
from acceptance import moving
from rich.console import Console
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.testbed import Testbed
from support.restaurants import make_restaurants, queries_text, row_count
from support.rows import fetch

from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.workload.workload import Tenant

SHARDS: Final = 4
TENANTS_PER_SHARD: Final = 4
STREAM_SHARDS: Final = 8
TENANT_WAIT_S: Final = 10  # far less than an import takes: a hold that timed out would make dead letters
COMMAND_S: Final = 3600.0
KILLED_AFTER_S: Final = (1.0, 4.0)  # the command needs about one to start
PLACED_S: Final = 120.0
APPLIED_S: Final = 600.0
PLACES_SQL: Final = "SELECT id FROM tenants WHERE business_type = 'restaurant'"
# The resources of restaurant $1, written by hand: the importer's statements are not used here.
WANTED_SQL: Final = """
SELECT 'restaurant' AS kind, id::text AS name, to_jsonb(r) - 'id' AS data FROM restaurants AS r WHERE id = $1
UNION ALL SELECT 'product', id::text, to_jsonb(p) - '{id,restaurant_id}'::text[]
FROM products AS p WHERE restaurant_id = $1
UNION ALL SELECT 'category', id::text, to_jsonb(c) - '{id,restaurant_id}'::text[]
FROM categories AS c WHERE restaurant_id = $1
UNION ALL SELECT 'order', id::text, to_jsonb(o) - '{id,restaurant_id}'::text[]
FROM orders AS o WHERE restaurant_id = $1
UNION ALL SELECT 'order_item', concat(order_id, ':', line), to_jsonb(i) - '{line,restaurant_id}'::text[]
FROM order_items AS i WHERE restaurant_id = $1
UNION ALL SELECT 'theme', id::text, to_jsonb(t) - '{id,restaurant_id}'::text[]
FROM themes AS t WHERE restaurant_id = $1
UNION ALL SELECT 'user', id::text, to_jsonb(u) - '{id,restaurant_id,password_hash}'::text[]
FROM users AS u WHERE restaurant_id = $1
UNION ALL SELECT 'analytics_event', id::text, to_jsonb(e) - '{id,restaurant_id}'::text[]
FROM analytics_events AS e WHERE restaurant_id = $1
"""
FOUND_SQL: Final = """
SELECT "resourceName" AS kind, "resourceId" AS name, data FROM resources
WHERE id = $1 AND "resourceName" NOT LIKE 'type-%' AND "resourceName" <> 'settings'
"""
# The rows of each view, with columns that the source's table has too; times of deletion included.
VIEW_COLUMNS: Final = {
    "restaurants": "name, address::text, created_at, updated_at, deleted_at",
    "products": "name, price, category_id::text, created_at, updated_at, deleted_at",
    "categories": "name, position::bigint, created_at, updated_at, deleted_at",
    "orders": "status::text, total, created_at::timestamptz, updated_at, deleted_at",
    "order_items": "order_id::text, product_id::text, quantity::bigint, price, created_at, updated_at, deleted_at",
    "themes": "created_at, updated_at, deleted_at",
    "users": "email, created_at, updated_at, deleted_at",
    "analytics_events": "type, created_at, deleted_at",
}
# Together they leave the number of rows; the last ones are those that cannot be followed.
CHANGES_SQL: Final = (
    "UPDATE orders SET total = total + 1, updated_at = now() WHERE id % 97 = $1",
    "INSERT INTO orders SELECT 7 + $1, 2, 'open', 1, 'new', NULL, now(), now()",
    "UPDATE orders SET deleted_at = now(), updated_at = now() WHERE id = 20000001 + $1",
    "DELETE FROM order_items WHERE order_id = 20000001 + $1 AND line = 1",
    "UPDATE analytics_events SET type = 'changed' WHERE restaurant_id = 1 AND id = 1000001 + $1",
)
CHANGES: Final = 6
CHANGE_PAUSE_S: Final = 1.0
FORGET_SQL: Final = """
DELETE FROM resources WHERE id = ANY($1::text[]) AND "resourceName" NOT LIKE 'type-%' AND "resourceName" <> 'settings'
"""


@dataclass(frozen=True, slots=True)
class Imported:
    """The figures of an import, and what is wrong with it."""

    plan_s: float
    apply_s: float
    rows: int
    held_put: int  # operations of restaurants that were put before the command ended
    figures: str | None  # of a cut-over
    differences: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restaurants", type=int, default=50)
    parser.add_argument("--orders", type=int, default=60, help="of each restaurant: 4.5 rows each, and 31 more")
    parser.add_argument("--rate", type=float, default=50.0, help="operations/s, of other tenants and of restaurants")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--kills", type=int, default=0, help="of the command, with -9, before it may end")
    parser.add_argument("--follow", action="store_true", help="follow the source while it changes, and cut over")
    parser.add_argument("--seed", type=int, default=7)
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    console = open_console(piped_width=160)
    testbed = Testbed(
        shards=SHARDS,
        stream_shards=STREAM_SHARDS,
        tenants_per_shard=TENANTS_PER_SHARD,
        worker_env={"TENANT_WAIT_SECONDS": str(TENANT_WAIT_S)},
    )
    async with testbed:
        group = testbed.stack.group
        source = PostgresServer(group, PostgresPrograms.find(group.directory), database="unused", name="source")
        await source.start()
        url = await make_restaurants(source, "pos_v2", restaurants=arguments.restaurants, orders=arguments.orders)
        imported = await import_all(testbed, url, arguments)
        await testbed.stop_workers()
    print_figures(console, imported, arguments)
    return 1 if imported.differences else 0


async def import_all(testbed: Testbed, url: str, arguments: argparse.Namespace) -> Imported:
    """Plan and import under load; return the figures, and every difference."""
    testbed.start_flow(ChainPlan("others", testbed.tenants_of()), rate=arguments.rate)
    restaurants = [Tenant(str(number + 1), "main", "restaurant") for number in range(arguments.restaurants)]
    spread(testbed, restaurants)
    queries = testbed.stack.group.directory / "restaurants.sql"
    queries.write_text(queries_text(), encoding="utf-8")
    differences: list[str] = []
    began = time.monotonic()
    plan = await run_command(testbed, url, queries)
    plan_s = time.monotonic() - began
    expected = row_count(arguments.restaurants, arguments.orders)
    if (plan["rows"], plan["counts"]) != (expected, {"import": arguments.restaurants}):
        differences.append(f"expected {expected} rows in the plan, got {plan['rows']}, {plan['counts']}")
    began = time.monotonic()
    options = ("--apply", "--parallel", str(arguments.parallel))
    command = asyncio.ensure_future(apply_and_kill(testbed, url, queries, options, arguments))
    await wait_until_placed(testbed, restaurants)
    flow = testbed.start_flow(ChainPlan("restaurants", tuple(restaurants)), rate=arguments.rate)
    result = await command
    apply_s = time.monotonic() - began
    held_put = flow.producer.put_count
    states = {report["state"] for report in result["tenants"]}
    if result["rows"] != expected or not states <= {"imported", "there"}:
        differences.append(f"expected {expected} rows imported, got {result['rows']}, {result['counts']}")
    places = {report["shardId"] for report in result["tenants"]}
    if len(places) < min(SHARDS, arguments.restaurants):
        differences.append(f"expected restaurants on each of {SHARDS} shards, got {sorted(places)}")
    differences += await compare(testbed, url, result)
    differences += await find_differences(testbed, restaurants)
    return Imported(plan_s, apply_s, expected, held_put, result.get("figures"), differences)


def spread(testbed: Testbed, restaurants: list[Tenant]) -> None:
    """Let Citrus name each shard for as many restaurants: of itself it fills the first one."""
    registry = testbed.stack.citrus.registry
    for restaurant, shard_id in zip(restaurants, itertools.cycle(testbed.stack.servers), strict=False):
        registry.place(restaurant.tenant_id, registry.shards[shard_id])


async def apply_and_kill(
    testbed: Testbed, url: str, queries: Path, options: tuple[str, ...], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run the command as often as it is killed, and then to its end; return its JSON."""
    random = Random(arguments.seed)
    if arguments.follow:
        return await follow_and_cut_over(testbed, url, queries, options)
    for _ in range(arguments.kills):
        process = await start_command(testbed, url, queries, *options)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(*KILLED_AFTER_S)):
                await process.communicate()
        if process.returncode is None:
            process.kill()
            await process.communicate()
    return await run_command(testbed, url, queries, *options)


async def follow_and_cut_over(testbed: Testbed, url: str, queries: Path, options: tuple[str, ...]) -> dict[str, Any]:
    """Follow the source while it changes; then stop the changes, and run the command to its end; return its JSON."""
    process = await start_command(testbed, url, queries, *options, "--follow")
    assert process.stderr is not None
    copied_at, began = 0.0, time.monotonic()
    while not copied_at:
        line = (await process.stderr.readline()).decode()
        if not line:
            raise SystemExit(f"tenants import --follow ended with {await process.wait()}")
        copied_at = time.monotonic() if "following until Ctrl-C" in line else 0.0
    for number in range(CHANGES):
        for change in CHANGES_SQL:
            await fetch(url, change, number)
        await asyncio.sleep(CHANGE_PAUSE_S)
    process.send_signal(signal.SIGINT)
    await process.communicate()
    cut_over_at = time.monotonic()
    answer = await run_command(testbed, url, queries, *options)
    answer["figures"] = (
        f"copied in {copied_at - began:.1f} s, followed for {cut_over_at - copied_at:.1f} s,"
        f" cut over in {time.monotonic() - cut_over_at:.1f} s"
    )
    return answer


async def start_command(testbed: Testbed, url: str, queries: Path, *options: str) -> asyncio.subprocess.Process:
    secret = queries.with_name("source-url")
    secret.touch(mode=0o600)
    secret.write_text(url, encoding="utf-8")
    words = ("tenants", "import", str(queries), "--business-type", "restaurant", "--json", *options)
    return await moving.start_command(testbed, *words, IMPORT_SOURCE_URL_FILE=str(secret))


async def run_command(testbed: Testbed, url: str, queries: Path, *options: str) -> dict[str, Any]:
    """Run `tenants import` to its end; return its JSON."""
    process = await start_command(testbed, url, queries, *options)
    async with asyncio.timeout(COMMAND_S):
        out, err = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(
            f"tenants import ended with {process.returncode}: {err.decode()[-2000:]}{out.decode()[-2000:]}"
        )
    answer: dict[str, Any] = json.loads(out)
    return answer


async def wait_until_placed(testbed: Testbed, restaurants: list[Tenant]) -> None:
    """Wait until every restaurant has a row on a shard, and note the shard as its home."""
    wanted = {tenant.tenant_id for tenant in restaurants}

    async def are_placed() -> bool:
        for url in testbed.urls:
            for row in await fetch(url, PLACES_SQL):
                testbed.homes[row["id"]] = url
        return wanted <= testbed.homes.keys()

    if not await poll_until(are_placed, within_s=PLACED_S):
        raise SystemExit(f"expected {len(wanted)} tenants as incoming within {PLACED_S:g} s")


async def compare(testbed: Testbed, url: str, result: dict[str, Any]) -> list[str]:
    differences = []
    urls = {shard_id: server.url for shard_id, server in testbed.stack.servers.items()}
    source = await asyncpg.connect(url)
    try:
        await source.execute("SET TimeZone = 'UTC'")
        for report in result["tenants"]:
            certificate = report["certificate"]
            wanted = {
                (row["kind"], row["name"]): json.loads(row["data"])
                for row in await source.fetch(WANTED_SQL, int(report["businessId"]))
            }
            rows = await fetch(urls[report["shardId"]], FOUND_SQL, f"{report['businessId']}-main")
            found = {(row["kind"], row["name"]): json.loads(row["data"]) for row in rows}
            if wanted != found or certificate["rows"] != len(wanted):
                odd = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
                differences.append(f"{report['name']}: {len(odd)} rows differ, such as {odd[:1]}")
            differences += await compare_views(source, urls[report["shardId"]], report["businessId"])
    finally:
        await source.close()
    return differences


async def compare_views(source: asyncpg.Connection, url: str, business_id: str) -> list[str]:
    differences = []
    for table, columns in VIEW_COLUMNS.items():
        column = "id" if table == "restaurants" else "restaurant_id"
        name = "concat(order_id, ':', line)" if table == "order_items" else "id::text"
        wanted = await source.fetch(f"SELECT {name}, {columns} FROM {table} WHERE {column} = $1", int(business_id))
        view = f"SELECT id, {columns} FROM restaurant_{table} WHERE restaurant_id = $1"
        found = await fetch(url, view, f"{business_id}-main")
        if {tuple(row) for row in wanted} != {tuple(row) for row in found}:
            differences.append(f"{business_id}: restaurant_{table} has other rows than {table}")
    return differences


async def find_differences(testbed: Testbed, restaurants: list[Tenant]) -> list[str]:
    """Stop the load, and compare every operation. The imported rows, which were compared, are taken away before."""
    for flow in testbed.flows:
        await flow.producer.stop()
    for url in testbed.urls:
        await fetch(url, FORGET_SQL, [tenant.tenant_id for tenant in restaurants])
    return await testbed.find_last_differences(within_s=APPLIED_S)


def print_figures(console: Console, imported: Imported, arguments: argparse.Namespace) -> None:
    console.print(f"{arguments.restaurants} tenants with {imported.rows} rows, from one database to {SHARDS} shards")
    console.print(f"planned in {imported.plan_s:.1f} s: {imported.rows / imported.plan_s:.0f} rows/s")
    console.print(
        f"imported in {imported.apply_s:.1f} s: {imported.rows / imported.apply_s:.0f} rows/s, verified and active;"
        f" {imported.held_put} operations came for these tenants in that time"
    )
    if imported.figures is not None:
        console.print(imported.figures)
    console.print(f"rows that differ, operations lost, done twice or dead: {len(imported.differences) or 'nothing'}")
    for difference in imported.differences:
        console.print(f"  {difference}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
