"""A shard that another program has written becomes ours: every row, nobody else's, and nothing is ever dropped."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import fetch
from support.requires import ROOT
from support.typescript_worker import WRITTEN_AT, TypescriptShard

from simplu_worker.business_info import Business
from simplu_worker.commands.output import Answer
from simplu_worker.commands.shards.adopt import AdoptMode, describe_plan, plan_members
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.schema_check import check_schema, ensure_schema
from simplu_worker.shards.settling import SupersededError
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.transfers import engine
from simplu_worker.transfers.adoption.adopter import (
    ADOPTION_TIMEOUTS,
    Adopter,
    AdoptionResult,
)
from simplu_worker.transfers.adoption.plan import AdoptionChoices, AdoptionPlan, AdoptionStep
from simplu_worker.transfers.engine import TransferStatus

pytestmark = pytest.mark.slow(0.2)

PAGE = ROOT / "docs" / "adopting.md"
CLINIC = ("clinic", "main")
DASHED = ("9f0c-11", "x-2")  # of whose id the text does not say where it ends
GYM = ("gym", "west")
BUSINESSES = {
    "clinic": Business("clinic", "dental", frozenset({"main"})),
    "9f0c-11": Business("9f0c-11", "hotel", frozenset({"x-2", "x-3"})),
    "9f0c": Business("9f0c", "gym", frozenset({"elsewhere"})),
    "gym": Business("gym", "gym", frozenset({"west"})),
}
TAKE_ALL = AdoptionChoices(leave_unresolved=True, leave_faulty=True)


@dataclass
class Names:
    """A locator that puts every tenant on one shard, but for those that are *elsewhere*."""

    address: ShardAddress
    elsewhere: set[str] = field(default_factory=set)

    async def locate(self, tenant_id: str) -> ShardAddress | None:
        is_here = tenant_id not in self.elsewhere
        return self.address if is_here else ShardAddress("shard-2", "postgresql://nobody@nowhere/none")


class Businesses:
    async def find(self, business_id: str, *, max_age_s: float = 0.0) -> Business | None:
        return BUSINESSES.get(business_id)


class Case:
    def __init__(self, address: ShardAddress, old: TypescriptShard) -> None:
        self.old = old
        self.names: Any = Names(address)
        self.businesses = Businesses()
        self.pool = ShardPool(address, size=2, timeouts=ADOPTION_TIMEOUTS)

    def adopter(self, *, tell: Callable[[TransferStatus], None] = lambda _: None, copied_at_once: int = 3) -> Adopter:
        return Adopter(self.pool, self.names, self.businesses, show=tell, quiet_s=0.01, copy_max_rows=copied_at_once)

    async def plan(self) -> AdoptionPlan:
        plan = await self.adopter().make_plan()
        assert isinstance(plan, AdoptionPlan)
        return plan

    async def adopt(self, choices: AdoptionChoices = TAKE_ALL) -> AdoptionResult:
        adopter = self.adopter()
        plan = await adopter.make_plan()
        return plan if isinstance(plan, AdoptionResult) else await adopter.adopt(plan, choices)

    async def resources(self) -> dict[tuple[str, str, str], Any]:
        rows = await fetch(
            self.pool, 'SELECT id, "resourceName", "resourceId", data::text FROM resources ORDER BY 1, 2, 3'
        )
        return {
            (row["id"], row["resourceName"], row["resourceId"]): json.loads(row["data"])
            for row in rows
            if row["resourceName"] != "settings"
        }


@asynccontextmanager
async def case_of(address: ShardAddress, **layout: Any) -> AsyncIterator[Case]:
    connection = await asyncpg.connect(address.connection_string)
    case = Case(address, TypescriptShard(connection, **layout))
    try:
        await case.old.make()
        yield case
    finally:
        await case.pool.close()
        await connection.close()


@pytest.fixture
async def case(make_shard: ShardMaker) -> AsyncIterator[Case]:
    async with case_of(await make_shard("shard-1", is_empty=True)) as case:
        yield case


async def tables(case: Case) -> set[str]:
    rows = await fetch(
        case.pool, "SELECT schemaname || '.' || tablename AS name FROM pg_tables WHERE schemaname !~ '^(pg_|inf)'"
    )
    return {row["name"] for row in rows}


@pytest.mark.parametrize("tenant_columns", ["joined", "two"])
@pytest.mark.parametrize("data_type", ["JSONB", "TEXT"])
async def test_adopt_takes_every_row_when_the_table_is_of_any_layout(
    make_shard: ShardMaker, tenant_columns: str, data_type: str
) -> None:
    address, is_joined = await make_shard("shard-1", is_empty=True), tenant_columns == "joined"
    async with case_of(address, is_joined=is_joined, data_type=data_type) as case:
        updated_at = WRITTEN_AT + timedelta(days=3)
        await case.old.insert(
            CLINIC, "patient", "pa2402-00001", '{"price": 1234567890.123456789012345678, "name": "Ána"}',
            at=WRITTEN_AT, updated_at=updated_at,
        )  # fmt: skip
        await case.old.insert(DASHED, "room", "1-2", {"beds": 2})

        adopted = await case.adopt(AdoptionChoices())

        assert adopted == AdoptionResult(row_count=2, tenant_count=2)
        rows = await fetch(
            case.pool,
            'SELECT id, "businessType", "resourceId", date, "lastUpdated", data::text FROM resources'
            " WHERE \"resourceName\" = 'patient'",
        )
        assert [list(row.values())[:5] for row in rows] == [
            ["clinic-main", "dental", "pa2402-00001", WRITTEN_AT, updated_at]
        ]
        assert "1234567890.123456789012345678" in rows[0]["data"]
        tenants = await fetch(
            case.pool, "SELECT id, business_id, location_id, business_type, state, created_at FROM tenants ORDER BY id"
        )
        assert tenants == [
            {"id": "9f0c-11-x-2", "business_id": "9f0c-11", "location_id": "x-2", "business_type": "hotel",
             "state": "active", "created_at": updated_at},
            {"id": "clinic-main", "business_id": "clinic", "location_id": "main", "business_type": "dental",
             "state": "active", "created_at": updated_at},
        ]  # fmt: skip
        async with case.pool.connection() as connection:
            assert await check_schema(connection, "shard-1") is not None
        assert len(await fetch(case.pool, "SELECT FROM resources_before_adoption")) == 2


async def test_adopted_shard_has_all_that_a_fresh_one_has(case: Case, make_shard: ShardMaker) -> None:
    await case.old.insert(CLINIC, "patient", "p-1", {})
    fresh = ShardPool(await make_shard("shard-2", is_empty=True), size=1)
    await ensure_schema(fresh)

    await case.adopt()

    query = """
        SELECT relkind::text AS kind, relname::text AS name, relrowsecurity::text AS more
        FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT 'f', proname, pg_get_function_arguments(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL
        SELECT 'c', conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
        UNION ALL
        SELECT 'p', policyname, tablename || coalesce(qual, '') FROM pg_policies WHERE schemaname = 'public'
        UNION ALL
        SELECT 'v', viewname, pg_get_viewdef(viewname::regclass) FROM pg_views WHERE schemaname = 'public'
        UNION ALL
        SELECT 'i', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    """
    wanted = {tuple(row.values()) for row in await fetch(fresh, query)}
    got = {tuple(row.values()) for row in await fetch(case.pool, query)}
    await fresh.close()
    assert wanted - got == set()
    assert {name for _, name, _ in got - wanted} == {
        "resources_before_adoption",
        "resources_pkey_before_adoption",
        "resources_id_seq",
        *(f"idx_resources_{name}" for name in ("type", "resource_id", "dates", "created_at", "business_location")),
    }
    triggers = await fetch(
        case.pool,
        "SELECT tgname, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal ORDER BY 2",
    )
    assert triggers == []
    assert not await fetch(case.pool, "SELECT FROM pg_namespace WHERE nspname = 'simplu_adoption'")
    assert (await fetch(case.pool, "SELECT FROM simplu_operation('clinic-main', 'none')")) == []


async def test_rows_under_two_names_of_a_type_are_one_resource(case: Case) -> None:
    twice = [await case.old.insert(CLINIC, name, "p-1", {"name": name}) for name in ("patient", "patients")]
    await case.old.insert(CLINIC, "patients", "p-2", {})
    await case.old.insert(GYM, "patients", "p-1", {})

    (duplicates,) = (await case.plan()).contents.duplicates
    await case.adopt(AdoptionChoices())

    assert (duplicates.resource_type, duplicates.old_ids) == ("patient", twice)
    assert await case.resources() == {
        ("clinic-main", "patient", "p-1"): {"name": "patients"},
        ("clinic-main", "patient", "p-2"): {},
        ("gym-west", "patients", "p-1"): {},
    }


async def test_plan_changes_nothing_and_says_what_stands_in_the_way(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    twice = [await case.old.insert(CLINIC, "patient", "p-1", {"n": n}) for n in range(2)]
    await case.old.insert(("who", "knows"), "patient", "p-1", {})
    await case.old.insert(("gym", "east"), "member", "m-1", {})
    await case.old.insert(GYM, "member", "m-1", {})
    bad = await case.old.insert(CLINIC, "patient", "p-2", "[1]")
    nameless = await case.old.insert(CLINIC, "patient", "", {})
    case.names.elsewhere.add("gym-west")
    before = await tables(case)

    plan = await case.plan()

    assert await tables(case) == before == {"public.resources"}
    assert [(owner.name, owner.business_type) for owner in plan.resolved] == [("clinic main", "dental")]
    assert (plan.row_count, plan.duplicate_count) == (2, 1)
    assert {owner.name: owner.problem for owner in plan.unresolved} == {
        "who-knows": "its business is not in business-info",
        "gym-east": "its business in business-info has no such location",
        "gym west": "it is routed to shard shard-2; route it to this one",
    }
    (duplicates,) = plan.contents.duplicates
    assert (duplicates.resource_id, duplicates.old_ids) == ("p-1", twice)
    assert {row.old_id for row in plan.contents.faulty} == {bad, nameless}
    shown = json.loads(msgspec.json.encode(plan_members(plan, plan.refusals(AdoptionChoices()))))
    assert [(one["name"], one["rows"]) for one in shown["tenants"]] == [("clinic-main", 2)]
    assert {tenant["name"] for tenant in shown["unresolved"]} == {"gym-east", "gym-west", "who-knows"}
    assert [row["oldId"] for row in shown["faulty"]["first"]] == [bad, nameless]
    Answer({}, describe_plan(plan, plan.refusals(AdoptionChoices()), AdoptMode.NOTHING)).print(as_json=False)
    assert "--leave-unresolved" in capfd.readouterr().err
    with pytest.raises(PermanentError, match=r"--leave-unresolved(?s:.)*--leave-faulty"):
        await case.adopter().adopt(plan, AdoptionChoices())
    assert await tables(case) == before


async def test_adopt_refuses_when_the_other_program_still_writes(case: Case) -> None:
    await case.old.insert(CLINIC, "patient", "p-1", {})
    adopter = case.adopter()
    await adopter.adopt(await case.plan(), None)
    await case.old.insert(CLINIC, "patient", "p-2", {})

    with pytest.raises(PermanentError, match="stop it, and run this again"):
        await adopter.take(AdoptionStep.WATCHING)

    assert {"public.resources"} == {name for name in await tables(case) if name.startswith("public.")}
    await case.adopt(AdoptionChoices())
    assert len(await case.resources()) == 2


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE resources SET data = '[]' WHERE resource_id = 'p-2'",
        "UPDATE resources SET business_location_id = 'who-knows' WHERE resource_id = 'p-2'",
    ],
)
async def test_adopt_swaps_nothing_when_what_was_planned_is_no_longer_so(case: Case, change: str) -> None:
    await case.old.insert(CLINIC, "patient", "p-1", {})
    await case.old.insert(CLINIC, "patient", "p-2", {})
    adopter, plan = case.adopter(), await case.plan()
    await adopter.adopt(plan, None)
    await case.old.connection.execute(change)

    with pytest.raises(PermanentError, match="run this again"):
        await adopter.adopt(plan, AdoptionChoices())

    assert len((await case.plan()).refusals(AdoptionChoices())) == 1
    await case.adopt(TAKE_ALL)


class KilledError(WorkerError):
    pass


async def test_adopt_goes_on_where_it_was_when_it_was_killed_anywhere(case: Case) -> None:
    for number in range(20):
        await case.old.insert((CLINIC, GYM)[number % 2], "patient", f"p-{number}", {"n": number})
    ends = iter(range(1, 100))

    def killed_after(count: int) -> Callable[[TransferStatus], None]:
        steps: Iterator[int] = iter(range(count))

        def tell(_: TransferStatus) -> None:
            if next(steps, None) is None:
                raise KilledError

        return tell

    runs = 0
    while True:
        runs += 1
        adopter = case.adopter(tell=killed_after(next(ends)), copied_at_once=2)
        with suppress(KilledError):
            plan = await adopter.make_plan()
            if isinstance(plan, AdoptionResult):
                break
            await case.old.replace(CLINIC, "patient", "p-0", {"n": runs})
            await adopter.adopt(plan, AdoptionChoices())

    assert runs > 5
    resources = await case.resources()
    assert len(resources) == 20
    assert resources["clinic-main", "patient", "p-0"] == {"n": runs - 1}


async def test_adopt_is_done_once_when_two_do_it(case: Case) -> None:
    for number in range(30):
        await case.old.insert(CLINIC, "patient", f"p-{number}", {"n": number})

    ended = await asyncio.gather(*(case.adopt(AdoptionChoices()) for _ in range(2)), return_exceptions=True)

    assert AdoptionResult(row_count=30, tenant_count=1) in ended
    assert all(isinstance(one, AdoptionResult | SupersededError) for one in ended)
    assert len(await case.resources()) == 30


async def test_other_program_goes_on_with_its_own_rights_while_it_is_copied(case: Case) -> None:
    role = f"other_{case.pool.address.place.rpartition('/')[2]}"
    await case.old.insert(CLINIC, "patient", "p-1", {"n": 1})
    await case.adopter().adopt(await case.plan(), None)
    await case.old.connection.execute(f"""
        CREATE ROLE {role};
        GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON resources TO {role};
        GRANT USAGE ON SEQUENCE resources_id_seq TO {role};
        SET ROLE {role}
    """)
    try:
        await case.old.replace(CLINIC, "patient", "p-1", {"n": 2})
        await case.old.insert(CLINIC, "patient", "p-2", {"n": 3})
    finally:
        await case.old.connection.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")

    await case.adopt(AdoptionChoices())

    assert [row["n"] for row in (await case.resources()).values()] == [2, 3]


async def test_copy_is_taken_back_by_the_statement_of_the_page(case: Case) -> None:
    (statement,) = re.findall(r"`(DROP SCHEMA simplu_adoption, [^`]+)`", PAGE.read_text(encoding="utf-8"))
    await case.old.insert(CLINIC, "patient", "p-1", {})
    await case.adopter().adopt(await case.plan(), None)

    await case.old.connection.execute(statement)

    assert await tables(case) == {"public.resources"}
    assert not await fetch(case.pool, "SELECT FROM pg_trigger WHERE NOT tgisinternal")
    await case.old.insert(CLINIC, "patient", "p-2", {})
    assert (await case.adopt(AdoptionChoices())).row_count == 2


async def test_workers_touch_nothing_while_a_shard_is_being_adopted(case: Case) -> None:
    await case.old.insert(CLINIC, "patient", "p-1", {})
    await case.adopter().adopt(await case.plan(), None)

    with pytest.raises(ShardUnavailableError, match="shards adopt"):
        await ensure_schema(case.pool)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("CREATE TABLE tenants (id int)", "there is tenants already"),
        ("CREATE TABLE resources_before_adoption (id int)", "there is resources_before_adoption already"),
    ],
)
async def test_plan_names_what_is_in_the_way_of_our_tables(case: Case, statement: str, says: str) -> None:
    await case.old.connection.execute(statement)
    plan = await case.plan()

    assert [refusal for refusal in plan.refusals(TAKE_ALL) if says in refusal]
    with pytest.raises(PermanentError, match=says):
        await case.adopter().adopt(plan, None)
    assert "simplu_adoption.transfers" not in await tables(case)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DROP TABLE resources; CREATE TABLE resources (id int)", "a column resource_type"),
        ("DROP TABLE resources; CREATE TABLE others (id int)", "expected a table resources"),
        ("DROP TABLE resources", "it is empty"),
        ("CREATE TABLE more () INHERITS (resources)", "without partitions or descendants"),
    ],
)
async def test_plan_refuses_what_it_does_not_know(case: Case, statement: str, says: str) -> None:
    await case.old.connection.execute(statement)

    with pytest.raises(PermanentError, match=says):
        await case.plan()


async def test_plan_refuses_a_shard_that_is_ours(shard: ShardPool) -> None:
    adopter = Adopter(shard, Names(shard.address), Businesses())  # type: ignore[arg-type]

    with pytest.raises(PermanentError, match="its schema is ours"):
        await adopter.make_plan()


async def test_swap_waits_for_no_one_longer_than_a_lock_may_take(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PATIENCE_S", 0.1)
    await case.old.insert(CLINIC, "patient", "p-1", {})
    plan = await case.plan()
    await case.adopter().adopt(plan, None)
    pool = ShardPool(case.pool.address, size=1, timeouts=type(ADOPTION_TIMEOUTS)(lock_s=0.05))
    adopter = Adopter(pool, case.names, case.businesses, quiet_s=0)

    async with case.old.connection.transaction():
        await case.old.connection.execute("SELECT FROM resources")
        with pytest.raises(RetryableError, match="end the transactions that lock it"):
            await adopter.adopt(plan, AdoptionChoices())

    await adopter.adopt(plan, AdoptionChoices())
    await pool.close()
    assert len(await case.resources()) == 1
