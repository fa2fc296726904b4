"""What changes on the shards is in a database of the user's own shape: each change once, in order, through moves."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from support.moves.world import TENANT_ID, World, open_world
from support.postgres.databases import ShardMaker, execute
from support.postgres.tenant_cases import TENANT, fetch
from support.rows import fetch as fetch_from

from simplu_local.postgres.server import PostgresServer
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.transfers.exporting.exporter import Exporter, ExportShards
from simplu_worker.transfers.exporting.target import TargetDatabase, TargetRefusedError, TargetSession
from simplu_worker.transfers.importing.queries import QueriesRefusedError, parse_mapping

TABLES = """
CREATE TABLE patients (
    clinic text, branch text, id text, n numeric(10, 2), name text CHECK (name <> 'nobody'), changed timestamptz,
    writes integer NOT NULL DEFAULT 1, PRIMARY KEY (clinic, branch, id)
);
CREATE TABLE visits (
    clinic text, branch text, id text PRIMARY KEY, patient text, changed timestamptz,
    FOREIGN KEY (clinic, branch, patient) REFERENCES patients DEFERRABLE
);
"""
MAPPING = """
-- name: patient
SELECT clinic AS business_id, branch AS location_id, id AS resource_id,
    jsonb_build_object('n', n, 'name', name) AS data, changed AS date, changed AS updated
FROM patients;
-- upsert: patient
INSERT INTO patients (clinic, branch, id, n, name, changed)
SELECT business_id, location_id, resource_id, (data ->> 'n')::numeric, data ->> 'name', updated FROM changed
ON CONFLICT (clinic, branch, id) DO UPDATE
SET n = excluded.n, name = excluded.name, changed = excluded.changed, writes = patients.writes + 1;
-- delete: patient
DELETE FROM patients USING changed
WHERE (clinic, branch, id) = (changed.business_id, changed.location_id, changed.resource_id);

-- name: visit
SELECT clinic AS business_id, branch AS location_id, id AS resource_id,
    jsonb_build_object('patient', patient) AS data, changed AS date, changed AS updated
FROM visits;
-- upsert: visit
INSERT INTO visits SELECT business_id, location_id, resource_id, data ->> 'patient', updated FROM changed
ON CONFLICT (id) DO UPDATE SET patient = excluded.patient;
-- delete: visit
DELETE FROM visits USING changed WHERE id = changed.resource_id;
"""
_numbers = itertools.count(1)


async def go_on() -> None:
    """Wait for nothing between two looks."""


@dataclass
class Case:
    world: World
    url: str
    text: str = MAPPING
    notes: list[str] = field(default_factory=list)

    def exporter(self) -> Exporter:
        shards = [MappedShard(name, pool.address.connection_string) for name, pool in self.world.shard_pools.items()]
        target = TargetDatabase(ShardAddress("target", self.url), parse_mapping(self.text.encode()), str(uuid4()))
        access = ExportShards(StaticMap(ShardMap(shards=tuple(shards))), self.world.pools, self.world.commits)
        return Exporter(target, access, self.notes.append)

    @asynccontextmanager
    async def session(self, exporter: Exporter) -> AsyncIterator[TargetSession]:
        async with exporter._target.open() as session:
            yield session

    async def export(self) -> None:
        """Begin an export, and run it until nothing is left."""
        exporter = self.exporter()
        async with self.session(exporter) as session:
            while await exporter.run_once(session):
                pass

    async def apply(self, *operations: tuple[Any, ...], on: str = "a") -> None:
        tenant = self.world.case(on)
        await tenant.apply_each(*(tenant.operation(kind, *rest) for kind, *rest in operations))

    async def patients(self) -> dict[str, tuple[float, int]]:
        rows = await fetch_from(self.url, "SELECT id, n, writes FROM patients")
        return {row["id"]: (float(row["n"]), row["writes"]) for row in rows}

    async def differing(self) -> int:
        found, others = await self.exporter().verify(go_on)
        assert others == []
        for one in found:
            assert (one.checksum == one.target_checksum) is (one.differing == 0)
        return sum(one.differing for one in found)


@pytest.fixture
async def case(make_shard: ShardMaker, postgres_server: PostgresServer) -> AsyncIterator[Case]:
    name = f"export_{next(_numbers)}"
    url = await postgres_server.create_database(name)
    await execute(url, TABLES)
    async with open_world(make_shard) as world:
        yield Case(world, url)
    await execute(postgres_server.url, f"DROP DATABASE {name} WITH (FORCE)")


async def test_each_change_is_written_once_in_its_order(case: Case) -> None:
    await case.apply(("create", "old", {"n": 1}))
    await case.export()
    assert await case.patients() == {"old": (1, 1)}

    await case.apply(("create", "new", {"n": 2}), ("patch", "old", {"n": 3}), ("create", "gone", {"n": 4}))
    await case.export()
    await case.apply(("delete", "gone"), ("update", "new", {"n": 5.5}))
    await case.export()
    await case.export()

    assert await case.patients() == {"old": (3, 2), "new": (5.5, 2)}
    assert await case.differing() == 0
    assert sum("compared" in note for note in case.notes) == 2  # each shard, once


async def test_begin_writes_and_deletes_what_differs_alone(case: Case) -> None:
    await case.apply(("create", "same", {"n": 1}), ("create", "other", {"n": 2}), ("create", "lacking", {"n": 3}))
    rows = "('clinic', 'main', 'same', 1), ('clinic', 'main', 'other', 7), ('clinic', 'main', 'extra', 8)"
    await execute(case.url, f"INSERT INTO patients VALUES {rows}")
    assert await case.differing() == 3

    await case.export()

    assert await case.patients() == {"same": (1, 1), "other": (2, 2), "lacking": (3, 1)}


async def test_rows_on_their_way_do_not_differ(case: Case) -> None:
    await case.export()
    await case.apply(("create", "r1", {"n": 1}))

    found, _ = await case.exporter().verify(case.export)

    assert [(one.rows, one.target_rows, one.differing, one.names) for one in found] == [(1, 1, 0, [])]


async def test_another_tenants_rows_stay(case: Case) -> None:
    await execute(case.url, "INSERT INTO patients VALUES ('elsewhere', 'main', 'x', 1)")
    await case.export()

    assert await case.patients() == {"x": (1, 1)}
    assert (await case.exporter().verify(go_on))[1] == ["elsewhere main"]


@pytest.mark.slow(1)
async def test_changes_before_and_after_a_move_arrive(case: Case) -> None:
    await case.export()
    await case.apply(("create", "before", {"n": 1}), ("create", "both", {"n": 1}))
    await case.world.move()
    await case.apply(("update", "both", {"n": 2}), ("create", "after", {"n": 3}), on="b")

    await case.export()

    assert {name: n for name, (n, _) in (await case.patients()).items()} == {"before": 1, "both": 2, "after": 3}
    assert await case.differing() == 0


@pytest.mark.slow(1)
async def test_tenant_that_came_back_is_whole(case: Case) -> None:
    await case.export()
    await case.apply(("create", "first", {"n": 1}))
    await case.world.move("a", "b")
    await case.apply(("delete", "first"), ("create", "second", {"n": 2}), on="b")
    await case.world.move("b", "a")
    await case.apply(("create", "third", {"n": 3}))

    await case.export()

    assert await case.patients() == {"second": (2, 1), "third": (3, 1)}


async def test_destroyed_tenant_leaves_the_target(case: Case) -> None:
    await case.apply(("create", "r1", {"n": 1}))
    await case.export()
    pool = case.world.shard_pools["a"]
    await fetch(pool, "DELETE FROM resources WHERE id = $1", TENANT_ID)
    await fetch(pool, "UPDATE tenants SET state = 'destroyed' WHERE id = $1", TENANT_ID)
    await fetch(pool, DESTROYED)

    await case.export()

    assert await case.patients() == {}


DESTROYED = """
INSERT INTO log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins)
SELECT pg_current_xact_id()::text::bigint + batch_offset, clock_timestamp(), 0, 'd', ARRAY[number], '{}', '{end}'
FROM shard_meta, tenants WHERE tenants.id = 'clinic-main'
"""


async def test_refused_row_is_named_and_nothing_is_lost_after_it(case: Case) -> None:
    await case.export()
    await case.apply(
        ("create", "r1", {"n": 1}), ("create", "r2", {"n": 2, "name": "nobody"}), ("create", "r3", {"n": 3})
    )
    with pytest.raises(TargetRefusedError, match=r"refuses patient r2 of clinic main: .*23514.*patients_name_check"):
        await case.export()
    assert await case.patients() == {}

    await execute(case.url, "ALTER TABLE patients DROP CONSTRAINT patients_name_check")
    await case.export()

    assert await case.patients() == {"r1": (1, 1), "r2": (2, 1), "r3": (3, 1)}


async def test_parents_come_before_children(case: Case) -> None:
    await case.export()
    tenant = case.world.case("a")
    await tenant.apply_each(
        tenant.operation("create", "p1", {"n": 1}),
        tenant.operation("create", "v1", {"patient": "p1"}, resource_type="visit"),
        tenant.operation("update", "p1", {"n": 2}),
    )
    await case.export()
    await tenant.apply_each(
        tenant.operation("update", "p1", {"n": 3}),
        tenant.operation("delete", "v1", resource_type="visit"),
        tenant.operation("delete", "p1"),
    )
    await execute(case.url, "ALTER TABLE visits ALTER CONSTRAINT visits_clinic_branch_patient_fkey NOT DEFERRABLE")
    await case.export()

    assert await case.patients() == {}
    assert await fetch_from(case.url, "SELECT id FROM visits") == []


async def test_earlier_export_ends_where_another_has_begun(case: Case) -> None:
    await case.export()
    earlier = case.exporter()
    async with case.session(earlier) as session:
        await earlier.run_once(session)
        await case.apply(("create", "r1", {"n": 1}))
        await case.export()
        await case.apply(("update", "r1", {"n": 2}))
        with pytest.raises(TargetRefusedError, match="another export has started"):
            await earlier.run_once(session)
    assert await case.patients() == {"r1": (1, 1)}


async def test_lag_counts_changes_and_their_time(case: Case) -> None:
    assert [one.changes for one in await case.exporter().read_lag()] == [None, None]
    await case.export()
    assert [(one.changes, one.seconds) for one in await case.exporter().read_lag()] == [(0, 0), (0, 0)]

    await case.apply(("create", "r1", {"n": 1}), ("create", "r2", {"n": 1}))

    first, second = await case.exporter().read_lag()
    assert (first.shard_id, first.changes, second.changes) == ("a", 2, 0)
    assert (first.seconds or 0) > 0


async def test_gap_another_mapping_and_another_run_compare_all(case: Case) -> None:
    await case.export()
    pool = case.world.shard_pools["a"]
    steps = (
        "INSERT INTO log_forgotten SELECT true, pg_current_xact_id()::text::bigint, now()",
        "UPDATE shard_meta SET batch_offset = batch_offset + 1000000",
    )
    for number, step in enumerate(steps):
        await case.apply(("create", f"r{number}", {"n": number}))
        await fetch(pool, "DELETE FROM log_rows")
        await fetch(pool, "DELETE FROM log_batches")
        await fetch(pool, step)
        await case.export()
        assert f"r{number}" in await case.patients()

    await execute(case.url, "DELETE FROM patients")
    await case.export()
    assert await case.patients() == {}
    case.text = MAPPING.replace("'n', n,", "'n', n + 0,")
    await case.export()
    assert (await case.patients()).keys() == {"r0", "r1"}


async def test_lost_commits_leave_the_target(case: Case) -> None:
    await case.apply(("create", "kept", {"n": 1}))
    await case.export()
    await case.apply(("create", "lost", {"n": 2}), ("update", "kept", {"n": 3}))
    await case.export()
    pool = case.world.shard_pools["a"]
    for step in (
        "DELETE FROM log_rows",
        "DELETE FROM log_batches",
        "DELETE FROM resources WHERE \"resourceId\" = 'lost'",
        "UPDATE resources SET data = '{\"n\": 1}' WHERE \"resourceId\" = 'kept'",
        "UPDATE shard_meta SET batch_offset = batch_offset + 1000000",  # as behind a failover
    ):
        await fetch(pool, step)

    await case.export()

    assert {name: n for name, (n, _) in (await case.patients()).items()} == {"kept": 1}


async def test_types_that_the_mapping_lacks_are_counted(case: Case) -> None:
    tenant = case.world.case("a")
    await tenant.apply_each(tenant.operation("create", "i1", {"sum": 1}, resource_type="invoice"))

    await case.export()

    found, _ = await case.exporter().verify(go_on)
    assert [one.not_exported.get("invoice") for one in found if one.tenant_id == "-".join(TENANT)] == [1]


async def test_statements_that_the_target_does_not_take_are_listed(case: Case) -> None:
    case.text = MAPPING.replace("INSERT INTO visits", "INSERT INTO visit").replace(
        "USING changed WHERE id", "USING gone"
    )
    with pytest.raises(QueriesRefusedError, match=r'upsert of visit: relation "visit" does not exist.*\n.*delete of'):
        await case.export()
