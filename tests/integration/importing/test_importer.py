"""Tenants of another database become ours: every row, on the right shard, verified, and none twice or by half."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker, execute
from support.postgres.move_cases import ask
from support.postgres.tenant_cases import fetch
from support.restaurants import make_restaurants, queries_text, row_count
from support.settings import settings_of

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_worker.business_info import Business
from simplu_worker.commands.output import show
from simplu_worker.commands.tenants.importing import import_tenants
from simplu_worker.errors import RetryableError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.health import assessment
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import state_words
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.transfers import engine
from simplu_worker.transfers.importing.copying import CopyCallbacks
from simplu_worker.transfers.importing.importer import (
    FollowRound,
    Importer,
    ImportOptions,
    ImportResult,
    ImportShards,
    discard_tenants,
)
from simplu_worker.transfers.importing.queries import QueriesRefusedError, RowSelection, SourceQuery, parse_queries
from simplu_worker.transfers.importing.rules import (
    IS_DUPLICATE,
    NO_TENANT,
    NOT_AN_OBJECT,
    ImportState,
    RefusedRow,
    TenantReport,
)
from simplu_worker.transfers.importing.source import PAGE_OF_DOCUMENTS, PART_MAX_BYTES, ImportSource, SourceRefusedError
from simplu_worker.vocabulary import Absence

slow = pytest.mark.slow(0.7)

RESTAURANTS, ORDERS = 6, 10
_numbers = itertools.count(1)


@dataclass
class Businesses:
    known: dict[str, Business] = field(default_factory=dict)

    async def find(self, business_id: str, *, max_age_s: float = 0.0) -> Business | None:
        assert business_id
        return self.known.get(business_id)


@dataclass
class Case:
    url: str
    routed: RoutedShards
    queries: list[SourceQuery]
    business_type: str | None = "restaurant"
    businesses: Businesses = field(default_factory=Businesses)
    refused: list[RefusedRow] = field(default_factory=list)

    def importer(
        self,
        *,
        parallel: int = 2,
        max_rows_per_s: float | None = None,
        leave_refused: bool = False,
        on_rows: Callable[[int], None] = lambda _: None,
    ) -> Importer:
        """Return an importer with these options; the rows that it refuses replace those of the one before."""
        self.refused.clear()
        return Importer(
            ImportSource(ShardAddress("source", self.url)),
            self.queries,
            ImportShards(self.routed.locator, self.routed.pools, self.businesses),
            ImportOptions(self.business_type, parallel, max_rows_per_s, leave_refused),
            CopyCallbacks(note_refused=self.refused.append, note_rows=on_rows),
        )

    async def discard(self, source: str | None = None, *, apply: bool = True) -> list[TenantReport]:
        reports, silent = await discard_tenants(self.routed.locator, self.routed.pools, source, apply=apply)
        assert silent == []
        return reports

    async def change_source(self, sql: str) -> None:
        await execute(self.url, sql)

    async def name_tombstones(self) -> None:
        data = "to_jsonb(p) - '{id,restaurant_id}'::text[]"
        self.change_queries(data, f"CASE WHEN deleted_at IS NULL THEN {data} END")
        await self.change_source("UPDATE products SET deleted_at = NULL")

    def change_queries(self, old: str, new: str) -> None:
        text = queries_text()
        assert old in text
        self.queries = parse_queries(text.replace(old, new).encode())

    async def has_rows(self) -> bool:
        return bool(await self.fetch("SELECT id FROM resources LIMIT 1"))

    async def fetch(self, sql: str, *arguments: Any) -> list[dict[str, Any]]:
        pools = self.routed.pools.by_shard_id()
        return [row for name in sorted(pools) for row in await fetch(pools[name], sql, *arguments)]


def states(result: ImportResult) -> dict[str, str]:
    return {report.name: report.state.value for report in result.reports}


def report_of(result: ImportResult, name: str) -> TenantReport:
    return next(report for report in result.reports if report.name == name)


@pytest.fixture(scope="session")
def restaurants(postgres_server: PostgresServer) -> str:
    asyncio.run(make_restaurants(postgres_server, "restaurants", restaurants=RESTAURANTS, orders=ORDERS))
    return "restaurants"


@pytest.fixture
async def case(make_shard: ShardMaker, postgres_server: PostgresServer, restaurants: str) -> AsyncIterator[Case]:
    name = f"restaurants_{next(_numbers)}"
    url = await postgres_server.create_database(name, template=restaurants)
    shards = [await make_shard("shard-1"), await make_shard("shard-2")]
    async with routed_shards(shards, tenants_per_shard=3) as routed:
        yield Case(url, routed, parse_queries(queries_text().encode()))
    await execute(postgres_server.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.slow(1)
async def test_plan_names_shard_rows_and_bytes_and_changes_nothing(case: Case) -> None:
    case.routed.register(("3", "main"), "shard-2")

    result = await case.importer().plan()

    assert states(result) == {f"{number} main": "import" for number in range(1, RESTAURANTS + 1)}
    assert {report.shard_id for report in result.reports} == {None, "shard-2"}
    assert report_of(result, "3 main").shard_id == "shard-2"
    assert sum(report.rows for report in result.reports) == row_count(RESTAURANTS, ORDERS)
    assert all(report.bytes > 1000 for report in result.reports)
    assert await case.fetch("SELECT id FROM tenants") == []


async def test_every_row_is_on_the_shard_of_its_tenant_with_equal_checksums(case: Case) -> None:
    result = await case.importer().apply()

    assert set(states(result).values()) == {"imported"}
    assert {report.shard_id for report in result.reports} == {"shard-1", "shard-2"}
    tenants = await case.fetch("SELECT id, state, business_type, state_changed_at > created_at AS done FROM tenants")
    assert len(tenants) == RESTAURANTS
    assert {(row["state"], row["business_type"], row["done"]) for row in tenants} == {("active", "restaurant", True)}
    counts = await case.fetch("SELECT id, count(*) FROM resources WHERE \"resourceName\" <> 'settings' GROUP BY id")
    assert {row["count"] for row in counts} == {row_count(1, ORDERS)}
    certificates = await case.fetch("SELECT tenant_id, step, detail::text FROM transfers ORDER BY 1")
    for row in certificates:
        business_id = row["tenant_id"].partition("-")[0]
        certificate = report_of(result, f"{business_id} main").certificate
        assert certificate is not None
        assert row["step"] == "done"
        assert json.loads(row["detail"]) == json.loads(msgspec.json.encode(certificate))
        assert (certificate.rows, len(certificate.checksum)) == (row_count(1, ORDERS), 16)
        assert ":" in certificate.source
        assert "postgres@" not in certificate.source


@pytest.mark.slow(1)
async def test_values_become_json_as_postgres_writes_it(case: Case) -> None:
    await case.importer().apply()

    rows = await case.fetch(
        'SELECT "resourceName" || $1 || "resourceId" AS key, data::text, date, "lastUpdated"'
        " FROM resources WHERE id = '1-main'",
        "/",
    )
    found = {row["key"]: row for row in rows}
    order = found["order/10000005"]
    assert '"total": 17.50' in order["data"]
    assert json.loads(order["data"])["details"] == {"table": 5, "guests": [1, 2]}
    assert order["date"].isoformat() == "2022-01-01T12:05:00.500000+00:00"
    assert json.loads(found["order_item/10000001:2"]["data"])["price"] == 9.99
    user = next(row for key, row in found.items() if key.startswith("user/"))
    assert user["date"].isoformat() == "2021-05-01T06:00:00+00:00"


@slow
async def test_second_run_leaves_imported_tenants_alone(case: Case) -> None:
    first = await case.importer().apply()
    await case.fetch("UPDATE resources SET data = '{}' WHERE \"resourceName\" = 'theme'")

    again = await case.importer().apply()

    assert set(states(again).values()) == {"there"}
    assert [report.certificate for report in again.reports] == [report.certificate for report in first.reports]
    changed = await case.fetch("SELECT data::text FROM resources WHERE \"resourceName\" = 'theme'")
    assert {row["data"] for row in changed} == {"{}"}

    case.change_queries("name: theme", "name: looks")
    other = await case.importer().apply()
    assert {report.state for report in other.reports} == {ImportState.THERE}


@pytest.mark.slow(3)
async def test_rows_that_cannot_be_taken_are_listed_and_keep_their_tenant_back(case: Case) -> None:
    await case.change_source("""
        ALTER TABLE analytics_events DROP CONSTRAINT analytics_events_pkey;
        INSERT INTO analytics_events SELECT * FROM analytics_events WHERE id = 1000001;
        ALTER TABLE analytics_events ALTER restaurant_id DROP NOT NULL;
        INSERT INTO analytics_events VALUES (7, NULL, 'lost', NULL, NULL, now());
        UPDATE themes SET updated_at = 'infinity' WHERE restaurant_id = 2;
        INSERT INTO orders VALUES (1, 3, 'open', 1, 'n', '{"a": "\\u0000"}', now(), now());
        INSERT INTO orders VALUES (2, 4, 'open', 1, repeat('x', 17000000), NULL, now(), now());
        INSERT INTO orders VALUES (3, 4, 'open', 1, repeat('x', 100000), NULL, now(), now());
    """)
    planned = await case.importer().plan()
    of_plan = sorted((one.resource_type, one.resource_id or "", one.reason) for one in case.refused)

    result = await case.importer().apply()

    found = {(one.resource_type, one.resource_id): one.reason for one in case.refused}
    assert len(case.refused) == 5
    assert of_plan == sorted((one.resource_type, one.resource_id or "", one.reason) for one in case.refused)
    assert found["analytics_event", "1000001"] == IS_DUPLICATE
    assert found["analytics_event", "7"] == NO_TENANT
    assert found["theme", "2"].startswith("its times: expected years from 1 to 9999, got")
    assert found["order", "2"].startswith("its document: expected at most 100,000 values")
    left = {"1 main", "2 main", "4 main"}
    assert {name for name, state in states(result).items() if state == "left"} == left
    assert report_of(result, "3 main").state is report_of(planned, "3 main").state is ImportState.REFUSED
    assert state_words("22P05") in (report_of(result, "3 main").detail or "")
    assert await case.fetch("SELECT id FROM resources WHERE id = '3-main' AND \"resourceName\" = 'order'") == []
    held = await case.fetch("SELECT id FROM tenants WHERE state = 'incoming'")
    assert {row["id"] for row in held} == {name.replace(" ", "-") for name in left | {"3 main"}}

    await case.change_source("UPDATE orders SET details = NULL WHERE id = 1")
    again = await case.importer(leave_refused=True).apply()

    assert states(again) == {name: "imported" if name in left | {"3 main"} else "there" for name in states(result)}
    certificate = report_of(again, "1 main").certificate
    assert certificate is not None
    assert certificate.refused == {IS_DUPLICATE: 2}
    long = await case.fetch("SELECT length(data ->> 'note') AS size FROM resources WHERE \"resourceId\" = '3'")
    assert [row["size"] for row in long if row["size"]] == [100000]


@slow
async def test_long_documents_are_in_memory_a_few_at_a_time(case: Case) -> None:
    await case.change_source(
        "INSERT INTO orders SELECT 1000 + n, 4, 'open', 1, repeat('x', 1000000), NULL, now(), now()"
        " FROM generate_series(1, 30) AS n"
    )
    async with ImportSource(ShardAddress("source", case.url)).open_snapshot() as snapshot:
        queries = await snapshot.reader.describe(case.queries)
        orders = next(query for query in queries if query.resource_type == "order")
        parts = [part async for part in snapshot.reader.read_rows(RowSelection(orders, "order", ("4", "main")))]

    assert sum(map(len, parts)) == ORDERS + 30
    assert {row.resource_id for part in parts for row in part} >= {str(1001 + number) for number in range(30)}
    sizes = [sum(len(row.document or "") for row in part) for part in parts]
    assert sum(sizes) > 30_000_000
    assert max(sizes) <= PART_MAX_BYTES + PAGE_OF_DOCUMENTS * 1_000_000 + 1_000


@pytest.mark.slow(8)
async def test_killed_import_is_waited_for_and_goes_on(
    case: Case,
    make_shard: ShardMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command goes on from a snapshot of its own, and leaves a tenant to one that runs."""
    shard = await make_shard("a")
    settings = settings_of(tmp_path, shard, IMPORT_SOURCE_URL=case.url)
    (queries := tmp_path / "restaurants.sql").write_text(queries_text())
    options = ("--business-type", "restaurant", "--parallel", "1", "--max-rows-per-second", "3", "--apply")

    async def apply() -> int:
        command = import_tenants(settings, queries, ImportOptions("restaurant"), apply=True, follow=False)
        return await show(command, as_json=False)

    async def is_at_work() -> bool:
        return bool(await ask(shard, "SELECT FROM transfers WHERE detail ? 'seenAt'"))

    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simplu_worker", "tenants", "import", str(queries), *options),
        env={"AWS_REGION": "eu-west-1", "SHARD_MAP_FILE": str(tmp_path / "map.json"), "IMPORT_SOURCE_URL": case.url},
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await poll_until(is_at_work, within_s=60)
    assert await apply() == 1
    assert "another command imports it; run this again once that has ended" in capsys.readouterr().out
    killed.kill()
    await killed.wait()
    held = await ask(shard, "SELECT id, step FROM tenants JOIN transfers ON tenant_id = id WHERE state = 'incoming'")
    assert held == [{"id": "1-main", "step": "open"}]
    await case.change_source("DELETE FROM order_items WHERE line = 3")

    monkeypatch.setattr(assessment, "RUNNING_S", 4.0)
    await ask(shard, "UPDATE transfers SET updated_at = clock_timestamp() WHERE step = 'open'")
    assert await apply() == 0
    assert "to import it, and counts as killed once it has written nothing for 4 s" in capsys.readouterr().err
    assert await ask(shard, "SELECT DISTINCT state FROM tenants") == [{"state": "active"}]
    counted = "SELECT count(*) FROM resources WHERE id = '1-main' AND \"resourceName\" <> 'settings'"
    assert await ask(shard, counted) == [{"count": row_count(1, ORDERS) - ORDERS}]


async def follow(case: Case, change: str, *, rounds: int = 1) -> ImportResult:
    """Follow the source, run the statements *change* after the first copy, and stop after so many rounds more."""
    stopping = asyncio.Event()
    changed: list[asyncio.Task[None]] = []
    seen = 0

    def report(one: FollowRound) -> None:
        nonlocal seen
        assert one.error is None
        if not changed:
            changed.append(asyncio.ensure_future(case.change_source(change)))
        elif changed[0].done():
            seen += 1
        if seen > rounds:
            stopping.set()

    result = await case.importer().follow(stopping, report, interval_s=0.05)
    await changed[0]
    return result


NEW_ORDER = "INSERT INTO orders VALUES (77, 1, 'open', 5, 'new', NULL, now(), now())"


@pytest.mark.slow(3)
async def test_changes_are_followed_until_the_cut_over(case: Case) -> None:
    await case.name_tombstones()
    result = await follow(
        case,
        f"""
        {NEW_ORDER};
        UPDATE products SET price = 99.90, updated_at = now() WHERE id = 100001;
        UPDATE products SET deleted_at = now(), updated_at = now() WHERE id = 100002;
        """,
    )

    assert set(states(result).values()) == {"followed"}
    rows = await case.fetch(
        "SELECT \"resourceId\" AS id, data ->> 'price' AS price FROM resources"
        " WHERE id = '1-main' AND \"resourceId\" IN ('77', '100001', '100002') ORDER BY 1"
    )
    assert [(row["id"], row["price"]) for row in rows] == [("100001", "99.90"), ("77", None)]
    held = await case.fetch("SELECT tenants.state, transfers.step FROM tenants JOIN transfers ON tenant_id = id")
    assert {(row["state"], row["step"]) for row in held} == {("incoming", "following")}
    copied = await case.fetch("SELECT xmin::text AS xmin FROM resources WHERE \"resourceName\" = 'theme'")

    with capture_logs() as logs:
        applied = await case.importer().apply()

    assert set(states(applied).values()) == {"imported"}
    assert "import.differs" not in [one["event"] for one in logs]
    again = await case.fetch("SELECT xmin::text AS xmin FROM resources WHERE \"resourceName\" = 'theme'")
    assert again == copied
    certificate = report_of(applied, "1 main").certificate
    assert certificate is not None
    assert (certificate.rows, certificate.deleted) == (row_count(1, ORDERS), 1)
    assert certificate.bytes > 1000


@slow
async def test_changes_that_cannot_be_followed_are_found_at_the_cut_over(case: Case) -> None:
    await follow(
        case,
        """
        DELETE FROM order_items WHERE restaurant_id = 2 AND line = 1;
        UPDATE analytics_events SET type = 'other' WHERE restaurant_id = 3;
        UPDATE orders SET total = 0 WHERE id = 40000001;
        """,
    )

    with capture_logs() as logs:
        result = await case.importer().apply()

    assert set(states(result).values()) == {"imported"}
    differing = sorted(one["tenant_id"] for one in logs if one["event"] == "import.differs")
    assert differing == ["2-main", "3-main", "4-main"]
    kinds = await case.fetch(
        "SELECT DISTINCT data ->> 'type' AS kind FROM resources"
        " WHERE id = '3-main' AND \"resourceName\" = 'analytics_event'"
    )
    assert [row["kind"] for row in kinds] == ["other"]
    assert report_of(result, "2 main").rows == row_count(1, ORDERS) - ORDERS


@pytest.mark.slow(2)
async def test_following_is_continued_where_it_ended_unless_the_mapping_is_another_one(case: Case) -> None:
    await follow(case, NEW_ORDER)
    copied = await case.fetch("SELECT xmin::text AS xmin FROM resources WHERE \"resourceName\" = 'theme'")
    await follow(case, "SELECT 1")
    assert await case.fetch("SELECT xmin::text AS xmin FROM resources WHERE \"resourceName\" = 'theme'") == copied

    case.change_queries("name: theme", "name: looks")
    result = await case.importer().apply()

    assert set(states(result).values()) == {"imported"}
    kinds = await case.fetch('SELECT DISTINCT "resourceName" AS kind FROM resources WHERE "resourceName" < \'r\'')
    assert "looks" in {row["kind"] for row in kinds}
    assert "theme" not in {row["kind"] for row in kinds}


@slow
async def test_discard_deletes_the_tenants_that_are_not_active(case: Case) -> None:
    await case.change_source("UPDATE themes SET updated_at = 'infinity' WHERE restaurant_id IN (2, 5)")
    await case.importer().apply()

    planned = await case.discard(apply=False)
    assert {report.state for report in planned} == {ImportState.DISCARD}
    discarded = await case.discard()

    assert [one.name for one in discarded] == [one.name for one in planned]
    assert all(one.rows == row_count(1, ORDERS) - 1 for one in discarded)
    assert [(report.name, report.state, report.shard_id) for report in discarded] == [
        ("2 main", ImportState.DISCARDED, "shard-1"),
        ("5 main", ImportState.DISCARDED, "shard-2"),
    ]
    assert await case.discard(apply=False) == []
    for table, column in (("tenants", "id"), ("transfers", "tenant_id"), ("resources", "id")):
        left = {row[column] for row in await case.fetch(f"SELECT DISTINCT {column} FROM {table}")}
        assert left == {"1-main", "3-main", "4-main", "6-main"}
    assert await case.routed.gateway.find("2-main") is Absence.NOT_HERE
    assert set(states(await case.importer(leave_refused=True).apply()).values()) == {"imported", "there"}


@slow
async def test_each_tenant_is_imported_by_one_of_two_runs_at_once(case: Case) -> None:
    first = asyncio.create_task(case.importer(max_rows_per_s=100).apply())  # it goes on when the second one comes
    assert await poll_until(case.has_rows, within_s=60)

    second = await case.importer().apply()
    of_first = await first

    both = [{state, states(of_first)[name]} for name, state in states(second).items()]
    assert all(found in ({"imported", "failed"}, {"imported", "there"}) for found in both)
    details = [report.detail for report in (*second.reports, *of_first.reports) if report.state is ImportState.FAILED]
    assert details
    assert all("another run has taken over" in (detail or "") for detail in details)
    counts = await case.fetch("SELECT id, count(*) FROM resources WHERE \"resourceName\" <> 'settings' GROUP BY id")
    assert {row["count"] for row in counts} == {row_count(1, ORDERS)}


@slow
async def test_tenant_is_safe_before_it_is_active_and_before_the_report(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, found = ReplicationWaiter.wait_for_transaction, Counter[str]()

    async def note_and_wait(commits: ReplicationWaiter, shard_id: str, server: Server) -> None:
        found.update(row["state"] for row in await case.fetch("SELECT state FROM tenants"))
        await wait(commits, shard_id, server)

    monkeypatch.setattr(ReplicationWaiter, "wait_for_transaction", note_and_wait)
    await case.importer(parallel=1).apply()
    # One after the other, and before and after the activation of each.
    assert found == {"incoming": RESTAURANTS**2, "active": RESTAURANTS**2}


@slow
@pytest.mark.usefixtures("_impatient")
async def test_standbys_of_a_shard_are_waited_for_by_one_tenant(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    async def fail(_: ReplicationWaiter, shard_id: str, __: Server) -> None:
        asked.append(shard_id)
        raise RetryableError("no standby answers")

    monkeypatch.setattr(ReplicationWaiter, "wait_for_transaction", fail)
    result = await case.importer(parallel=1).apply()
    assert (set(states(result).values()), sorted(asked)) == ({"failed"}, ["shard-1", "shard-2"])


@slow
async def test_import_of_a_source_with_another_identity_is_discarded_by_its_name(case: Case) -> None:
    await follow(case, "SELECT 1")
    await case.fetch("UPDATE transfers SET place = 'pos of 7' WHERE tenant_id IN ('1-main', '4-main')")

    refused = report_of(await case.importer().plan(), "1 main")
    discarded = await case.discard("pos of 7")

    assert (refused.state, "--source 'pos of 7'" in (refused.detail or "")) == (ImportState.REFUSED, True)
    assert {one.name: one.state for one in discarded} == dict.fromkeys(("1 main", "4 main"), ImportState.DISCARDED)
    assert set(states(await case.importer().apply()).values()) == {"imported"}


@slow
async def test_snapshot_is_that_of_the_beginning_for_all_tenants(case: Case) -> None:
    changed = False

    def change(_: int) -> None:
        nonlocal changed
        if not changed:
            changed = True
            tasks.append(asyncio.ensure_future(case.change_source("DELETE FROM order_items")))

    tasks: list[asyncio.Future[None]] = []
    result = await case.importer(on_rows=change, max_rows_per_s=2000).apply()
    await asyncio.gather(*tasks)

    assert set(states(result).values()) == {"imported"}
    assert {report.rows for report in result.reports} == {row_count(1, ORDERS)}


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PATIENCE_S", 0.0)


@slow
@pytest.mark.usefixtures("_impatient")
async def test_changed_row_on_the_shard_is_noticed_by_the_checksum(case: Case) -> None:
    await case.importer().plan()
    for address in [pool.address for pool in case.routed.pools.by_shard_id().values()]:
        await execute(
            address.connection_string,
            """
            CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN NEW.data := NEW.data || '{"a": 1}'; RETURN NEW; END $$;
            CREATE TRIGGER spoil BEFORE INSERT ON resources FOR EACH ROW
                WHEN (NEW."resourceName" = 'theme' AND NEW.id = '1-main') EXECUTE FUNCTION spoil();
            """,
        )

    result = await case.importer().apply()

    report = report_of(result, "1 main")
    assert report.state is ImportState.FAILED
    assert "its rows differ from the source's" in (report.detail or "")
    assert sorted(states(result).values()) == ["failed"] + ["imported"] * (RESTAURANTS - 1)


@slow
@pytest.mark.usefixtures("_impatient")
async def test_tenants_of_a_failed_shard_are_imported_by_the_next_run(case: Case) -> None:
    await case.importer().plan()
    broken = case.routed.pools.pool_of("shard-2").address.connection_string
    await execute(
        broken,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'full' USING ERRCODE = 'disk_full'; END $$;"
        " CREATE TRIGGER fail BEFORE INSERT ON resources FOR EACH ROW EXECUTE FUNCTION fail();",
    )

    result = await case.importer().apply()

    by_shard = {(report.shard_id, report.state) for report in result.reports}
    assert by_shard == {("shard-1", ImportState.IMPORTED), ("shard-2", ImportState.FAILED)}
    assert {report.detail for report in result.reports if state_words("53100") in (report.detail or "")}

    await execute(broken, "DROP TRIGGER fail ON resources")
    await case.routed.pools.pool_of("shard-2").probe()
    whole = case.routed.pools.pool_of("shard-1").address.connection_string

    async def silence(_: ShardPool, __: str) -> None:
        await execute(whole, "ALTER TABLE IF EXISTS transfers RENAME TO away")

    importer = msgspec.structs.replace(case.importer(parallel=1), callbacks=CopyCallbacks(wait_for_killed=silence))
    assert set(states(await importer.apply()).values()) == {"failed", "there"}
    copied = await case.fetch("SELECT id FROM tenants WHERE state = 'incoming' AND id IN (SELECT id FROM resources)")
    assert len(copied) == 1  # the others do not wait for the silent shard, too

    await execute(whole, "ALTER TABLE away RENAME TO transfers")
    await case.routed.pools.pool_of("shard-1").probe()
    assert set(states(await case.importer().apply()).values()) == {"imported", "there"}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("created_at AS date", "opened AS date", "restaurant: expected date of the type timestamptz or timestamp, got"),
        (
            "id AS business_id",
            "id::text AS business_id",
            "business_id: expected one type in all queries, got int4, text",
        ),
        ("FROM orders", "FROM pos.orders", 'order: relation "pos.orders" does not exist (42P01); correct the query'),
        ("FROM restaurants AS r", "FROM restaurants AS r WHERE id = $1", "restaurant: the query has a $1"),
        ("FROM restaurants AS r", "FROM restaurants AS r; DELETE FROM themes", "restaurant: syntax error"),
    ],
)
async def test_queries_that_do_not_fit_are_refused(case: Case, old: str, new: str, problem: str) -> None:
    case.queries = parse_queries(queries_text().replace(old, new, 1).encode())

    with pytest.raises(QueriesRefusedError, match=re.escape(problem)):
        await case.importer().apply()

    assert await case.fetch("SELECT id FROM tenants") == []


async def test_query_that_writes_is_refused(case: Case) -> None:
    await case.change_source(
        "CREATE FUNCTION spoil() RETURNS text LANGUAGE sql AS $$ DELETE FROM themes; SELECT 'main' $$"
    )
    case.queries = parse_queries(queries_text().replace("'main'", "spoil()", 1).encode())

    with pytest.raises(SourceRefusedError, match="it writes"):
        await case.importer().plan()


PATIENTS = """
-- name: {name}
SELECT business AS business_id, location AS location_id, id AS resource_id, data::jsonb AS data, made AS date,
    made AS updated
FROM patients WHERE id LIKE '{ids}' -- the last line may be a comment
"""


async def test_types_of_tenants_and_resources_are_those_of_business_info(
    make_shard: ShardMaker, postgres_server: PostgresServer
) -> None:
    name = f"patients_{next(_numbers)}"
    url = await postgres_server.create_database(name)
    await execute(
        url,
        """
        CREATE TABLE patients (business text, location text, id text, data json, made timestamptz DEFAULT '2024-01-01');
        INSERT INTO patients VALUES
            ('clinic', 'main', 'p1', '{"name": "Ada", "n": 1.10}'), ('clinic', 'main', 'q2', '{}'),
            ('clinic', 'main', 'p3', '{}'), ('clinic', 'main', 'p3', '{}'), ('bad', 'one', 'p1', '[1]'),
            ('a-b', 'c', 'p1', '{}'), ('a', 'b-c', 'p1', '{}'), ('shop', 'main', 'p1', '{}'), ('', 'x', 'p1', '{}');
        """,
    )
    texts = [PATIENTS.format(name="patients", ids="p%"), PATIENTS.format(name="patient", ids="q%")]
    async with routed_shards([await make_shard("shard-1")]) as routed:
        case = Case(url, routed, parse_queries("".join(texts).encode()), business_type=None)
        case.businesses.known = {one: Business(one, "dental") for one in ("clinic", "bad", "a", "a-b")}
        first = await case.importer().apply()
        result = await case.importer(leave_refused=True).apply()
        rows = await case.fetch('SELECT id, "resourceName" AS name, "resourceId" FROM resources ORDER BY 1, 2, 3')
    await execute(postgres_server.url, f"DROP DATABASE {name} WITH (FORCE)")

    refused = dict.fromkeys(("shop main", " x", "a-b c", "a b-c"), "refused")
    assert states(first) == {"clinic main": "left", "bad one": "left"} | refused
    assert states(result) == {"clinic main": "imported", "bad one": "imported"} | refused
    reasons = [("patient", "p1", NOT_AN_OBJECT), *[("patient", "p3", IS_DUPLICATE)] * 2]
    assert sorted((one.resource_type, one.resource_id, one.reason) for one in case.refused) == sorted(reasons)
    assert [tuple(row.values()) for row in rows] == [
        ("bad-one", "settings", "default"),
        ("clinic-main", "patient", "p1"),
        ("clinic-main", "patient", "q2"),
        ("clinic-main", "settings", "default"),
    ]
