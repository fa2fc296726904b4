"""An imported database follows the shards while the export is killed, a tenant moves and a shard fails over.

    python tests/acceptance/exporting.py [--operations 10000] [--kill-every 3] [--seed 7]

Starts the embedded stack and the worker, imports restaurants from a database, and exports them to the same one while
operations come by the stream. The export is killed with -9 again and again. In the first half a trigger of the target
notes each write: what had one operation must have been written once, and no resource back to an older state. In the
second half a restaurant moves, and a primary is lost with the commits of a second. In the end all rows of the database
must be those of the shards, by the checksums of the command and by a comparison of our own. Exit status 0 only then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from acceptance import importing, moving
from acceptance.struck_shard import Struck
from support.load.console import open_console
from support.load.operation_chains import LOGGED
from support.load.testbed import Testbed
from support.postgres.databases import execute
from support.restaurants import make_restaurants, mapping_text, queries_text
from support.rows import fetch

from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.workload.producer import open_client, put_items
from simplu_local.workload.workload import Item, Tenant

APPLIED_S: Final = 120.0
EXPORTED_S: Final = 120.0
CYCLE: Final = ("create", "single", "patch", "update", "delete")
FIRST_ID: Final = 5_000_000_000
AUDIT_SQL: Final = """
CREATE TABLE order_writes (number bigint GENERATED ALWAYS AS IDENTITY, id bigint, total numeric);
CREATE FUNCTION note_write() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO order_writes (id, total) VALUES (NEW.id, NEW.total); RETURN NEW; END';
CREATE TRIGGER noted AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION note_write();
"""
WRITES_SQL: Final = "SELECT id, total FROM order_writes ORDER BY number"
APPLIED_SQL: Final = "SELECT request_id FROM operations WHERE starts_with(request_id, 'way-back-')"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--restaurants", type=int, default=6)
    parser.add_argument("--rate", type=float, default=150.0, help="operations/s")
    parser.add_argument("--kill-every", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=7)
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    console = open_console(piped_width=160)
    async with Testbed(shards=2, stream_shards=2, tenants_per_shard=1, replicas=0) as testbed:
        group = testbed.stack.group
        target = PostgresServer(group, PostgresPrograms.find(group.directory), database="unused", name="target")
        await target.start()
        url = await make_restaurants(target, "pos_v2", restaurants=arguments.restaurants, orders=20)
        trial = Trial(testbed, url, arguments)
        differences = await trial.run()
        await testbed.stop_workers()
    console.print(f"{arguments.operations} operations, {trial.kills} kills of the export, a move and a fail-over")
    console.print(f"the target had all {trial.settled_s:.1f} s after the last operation was applied")
    console.print(f"differences: {len(differences) or 'none'}")
    for difference in differences:
        console.print(f"  {difference}", markup=False, soft_wrap=True)
    return 1 if differences else 0


class Trial:
    """The import, the load, what happens beside it, and the comparison."""

    def __init__(self, testbed: Testbed, url: str, arguments: argparse.Namespace) -> None:
        self._testbed = testbed
        self._url = url
        self._arguments = arguments
        self._chance = random.Random(arguments.seed)
        self._directory = testbed.stack.group.directory
        self._tenants = [Tenant(str(number + 1), "main", "restaurant") for number in range(arguments.restaurants)]
        self._struck = Struck(testbed, number=0)
        self._mapping = self._directory / "mapping.sql"
        self.kills = 0
        self.settled_s = 0.0

    async def run(self) -> list[str]:
        """Return every difference."""
        await self._import()
        half = self._arguments.operations // 2
        async with self._exporting():
            await self._wait_until_exported()  # what changes during the first comparison may be written twice
            await self._put(0, half)
            differences = await self._odd_writes(half)
            await asyncio.gather(self._put(half, self._arguments.operations), self._disturb())
            applied_at = time.monotonic()
            await self._wait_until_exported()
            self.settled_s = time.monotonic() - applied_at
        return differences + await self._differences()

    async def _import(self) -> None:
        testbed = self._testbed
        for shard_id in testbed.stack.servers:
            await moving.run_command(testbed, "shards", "upgrade", shard_id, "--apply", "--json")
        await self._struck.begin()
        importing.spread(testbed, self._tenants)
        queries = self._directory / "restaurants.sql"
        queries.write_text(queries_text(), encoding="utf-8")
        self._mapping.write_text(mapping_text(), encoding="utf-8")
        (secret := self._directory / "target-url").touch(mode=0o600)
        secret.write_text(self._url, encoding="utf-8")
        await importing.run_command(testbed, self._url, queries, "--apply")
        await importing.wait_until_placed(testbed, self._tenants)
        await execute(self._url, AUDIT_SQL)

    async def _start(self, *options: str) -> asyncio.subprocess.Process:
        words = ("tenants", "export", str(self._mapping), *options)
        return await moving.start_command(
            self._testbed, *words, EXPORT_TARGET_URL_FILE=str(self._directory / "target-url")
        )

    async def _ask(self, *options: str) -> dict[str, Any]:
        process = await self._start("--json", *options)
        output, errors = await process.communicate()
        if not output:
            raise SystemExit(f"expected an answer of the export, got {errors.decode()[-2000:]}")
        answer: dict[str, Any] = json.loads(output)
        return answer

    @contextlib.asynccontextmanager
    async def _exporting(self) -> AsyncIterator[None]:
        stopping = asyncio.Event()
        task = asyncio.create_task(self._export_and_kill(stopping))
        try:
            yield
        finally:
            stopping.set()
            await task

    async def _export_and_kill(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            process = await self._start("--follow")
            ended = asyncio.ensure_future(process.communicate())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._chance.uniform(0.5, 1.5) * self._arguments.kill_every):
                    await stopping.wait()
            if process.returncode is not None:
                raise SystemExit(f"the export ended with {process.returncode}: {(await ended)[1].decode()[-2000:]}")
            process.kill()
            await ended
            self.kills += not stopping.is_set()

    async def _put(self, begin: int, end: int) -> None:
        """Put operations, and wait until all are applied."""
        testbed = self._testbed
        async with open_client("kinesis", testbed.stack.env) as kinesis:
            stream, items = testbed.stack.env["KINESIS_STREAM_NAME"], operations(self._tenants, begin, end)
            await put_items(kinesis, stream, items, on_put=lambda _: None, rate=self._arguments.rate)

        async def are_applied() -> bool:
            found: set[str] = set()
            for url in testbed.urls:
                with contextlib.suppress(OSError):  # it fails over
                    found |= {row["request_id"] for row in await fetch(url, APPLIED_SQL)}
            return len(found) >= end

        if not await poll_until(are_applied, within_s=APPLIED_S):
            raise SystemExit(f"expected {end} operations applied within {APPLIED_S:g} s")

    async def _disturb(self) -> None:
        testbed, tenant = self._testbed, self._tenants[0]
        home = testbed.urls.index(testbed.homes[tenant.tenant_id])
        await moving.move(testbed, tenant, 1 - home, None, [])
        await moving.fail_over(self._struck)

    async def _wait_until_exported(self) -> None:
        async def is_all_written() -> bool:
            return all(one["changes"] == 0 for one in (await self._ask())["shards"])

        if not await poll_until(is_all_written, within_s=EXPORTED_S):
            raise SystemExit(f"expected all changes in the target within {EXPORTED_S:g} s, got {await self._ask()}")

    async def _odd_writes(self, count: int) -> list[str]:
        """Return what was written twice, or back to an older state."""
        await self._wait_until_exported()
        writes: dict[int, list[float]] = {}
        for row in await fetch(self._url, WRITES_SQL):
            writes.setdefault(row["id"], []).append(float(row["total"]))
        places = [place(number, len(self._tenants)) for number in range(count)]
        counts = {order: len(writes.get(order, ())) for _, order, kind in places if kind == "single"}
        differences = [f"order {order} was written {times} times" for order, times in counts.items() if times != 1]
        return differences + [f"order {one} went back: {all_}" for one, all_ in writes.items() if all_ != sorted(all_)]

    async def _differences(self) -> list[str]:
        answer = await self._ask("--verify")
        differences = [
            f"{one['tenantId']}: {one['checksum']} and {one['targetChecksum']}: {one['names']}"
            for one in answer["tenants"]
            if one["differing"] or one["checksum"] != one["targetChecksum"]
        ]
        for tenant in self._tenants:
            wanted = await fetch(self._testbed.homes[tenant.tenant_id], importing.FOUND_SQL, tenant.tenant_id)
            found = await fetch(self._url, importing.WANTED_SQL, int(tenant.business_id))
            if documents(wanted) != documents(found):
                differences.append(f"{tenant.tenant_id}: the rows of the target are others")
        return differences


def documents(rows: Sequence[Any]) -> dict[tuple[str, str], Any]:
    return {(row["kind"], row["name"]): without_nulls(json.loads(row["data"])) for row in rows}


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return value


def place(number: int, tenant_count: int) -> tuple[int, int, str]:
    """Return the tenant of an operation, by its number, its order, and what it does."""
    step, index = divmod(number, tenant_count)
    cycle, in_cycle = divmod(step, len(CYCLE))
    kind = CYCLE[in_cycle]
    order = FIRST_ID + (cycle * tenant_count + index) * 2 + (kind == "single")
    return index, order, "patch" if kind == "delete" and cycle % 2 else kind


def operations(tenants: Sequence[Tenant], begin: int, end: int) -> Iterator[Item]:
    for number in range(begin, end):
        index, order, kind = place(number, len(tenants))
        tenant = tenants[index]
        members: dict[str, Any] = {
            "operation": "create" if kind == "single" else kind,
            "businessId": tenant.business_id,
            "locationId": tenant.location_id,
            "resourceType": "order",
            "resourceId": str(order),
            "requestId": f"way-back-{number}",
            "timestamp": datetime.now(UTC).isoformat(),
        }
        if kind != "delete":
            members["data"] = {"total": number, "details": {"n": number}}
        if kind not in {"delete", "patch"}:
            times = {"created_at": "2026-01-01T10:00:00", "updated_at": "2026-01-01T10:00:00+00:00"}
            members["data"] |= times | {"status": "paid" if kind == "update" else "open"}
        yield Item(tenant.tenant_id, json.dumps(members).encode(), LOGGED)


if __name__ == "__main__":
    main()
