"""Whatever another program does to its table while it is copied, ours is as it is once all changes were looked at."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import NO_CHECKS, fetch
from support.typescript_worker import WRITTEN_AT, TypescriptShard

from simplu_worker.business_info import Business
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.transfers.adoption.adopter import ADOPTION_TIMEOUTS, Adopter
from simplu_worker.transfers.adoption.plan import AdoptionPlan, AdoptionStep

pytestmark = pytest.mark.slow(2.5)

AS_BEGUN = """
TRUNCATE resources RESTART IDENTITY;
TRUNCATE simplu_adoption.resources, simplu_adoption_log.taken, simplu_adoption_log.changes, simplu_adoption_log.sources;
UPDATE simplu_adoption.transfers SET detail = '{}';
"""
OLD_SQL = """
SELECT id, business_location_id, resource_type, resource_id, data, updated_at FROM resources ORDER BY updated_at, id
"""
OURS_SQL = 'SELECT id, "resourceName", "resourceId", data::text FROM simplu_adoption.resources'

TENANTS = ["clinic-main", "gym-west", "who-knows"]
RESOURCE_IDS = ["p-1", "p-2", "p-3", ""]  # the last cannot be taken
FAULTY = ["[]", '{"n": "\\u0000"}', "not JSON"]
INSERT = """
INSERT INTO resources (business_location_id, resource_type, resource_id, data, created_at, updated_at)
VALUES ($1, 'patient', $2, $3, $4, $4)
"""
CHANGES = {
    INSERT: 4,
    "UPDATE resources SET data = $3, updated_at = $4 WHERE id = $5": 4,
    "UPDATE resources SET resource_id = $2 WHERE id = $5": 2,
    "UPDATE resources SET business_location_id = $1 WHERE id = $5": 2,
    "UPDATE resources SET id = id + 100 WHERE id = $5": 1,
    "DELETE FROM resources WHERE id = $5": 4,
    "TRUNCATE resources": 0.1,
}


class Other:
    """The other program: at each turn it does something to its table, by the draws of *random*."""

    def __init__(self, pool: ShardPool, random: Random) -> None:
        self._pool = pool
        self._random = random

    async def change(self, statement: str | None = None) -> None:
        """Do something to a row that is there, or add one; most of them can be taken."""
        random = self._random
        (statement,) = random.choices(list(CHANGES), list(CHANGES.values())) if statement is None else (statement,)
        rows = await fetch(self._pool, "SELECT id FROM resources ORDER BY id")
        values = (
            random.choices(TENANTS, [6, 4, 1])[0],
            random.choices(RESOURCE_IDS, [4, 4, 2, 1])[0],
            random.choice(FAULTY) if random.random() < 0.1 else f'{{"n": {random.randrange(1000)}}}',
            WRITTEN_AT.replace(minute=random.randrange(5)),  # often the same
            random.choice(rows)["id"] if rows else 0,
        )
        # What is used of them, under new numbers.
        used = sorted({int(number) for number in re.findall(r"\$(\d)", statement)})
        for place, number in enumerate(used, start=1):
            statement = statement.replace(f"${number}", f"${place}")
        await fetch(self._pool, statement, *(values[number - 1] for number in used))


class Everywhere:
    def __init__(self, address: ShardAddress) -> None:
        self._address = address

    async def locate(self, _: str) -> ShardAddress:
        return self._address

    async def find(self, business_id: str, *, max_age_s: float = 0.0) -> Business | None:
        known = {"clinic": ("dental", "main"), "gym": ("gym", "west")}.get(business_id)
        return known and Business(business_id, known[0], frozenset({known[1]}))


@pytest.fixture
async def begun(make_shard: ShardMaker) -> AsyncIterator[tuple[Adopter, ShardPool]]:
    address = await make_shard("shard-1", is_empty=True)
    pool = ShardPool(address, size=2, timeouts=ADOPTION_TIMEOUTS)
    connection = await asyncpg.connect(address.connection_string)
    await TypescriptShard(connection, data_type="TEXT").make()
    await connection.close()
    names = Everywhere(address)
    adopter = Adopter(pool, names, names, copy_max_rows=2)  # type: ignore[arg-type]  # all that is asked of a locator
    plan = await adopter.make_plan()
    assert isinstance(plan, AdoptionPlan)
    await adopter.adopt(plan, None)
    yield adopter, pool
    await pool.close()


def as_object(text: str) -> Any:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) and "\\u0000" not in text else None


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, suppress_health_check=NO_CHECKS)
async def test_copy_comes_to_what_the_old_table_is_whatever_is_done_to_it(
    begun: tuple[Adopter, ShardPool], seed: int
) -> None:
    adopter, pool = begun
    random = Random(seed)
    other = Other(pool, random)
    adopter._owners.clear()
    async with pool.connection() as connection:
        await connection.execute(AS_BEGUN)
        await connection.execute("ALTER TABLE resources DISABLE TRIGGER USER")  # as before the adoption
    for _ in range(12):
        await other.change(INSERT)
    await fetch(pool, "ALTER TABLE resources ENABLE TRIGGER USER")
    adopter._standing = await adopter._begin()
    await adopter.take(AdoptionStep.COPYING)  # makes the triggers
    for _ in range(40):
        match random.randrange(6):
            case 0:
                await adopter.take(AdoptionStep.COPYING)
            case 1:
                await adopter.take(AdoptionStep.CATCHING_UP)
            case 2:
                await adopter.take(AdoptionStep.LOOKING_UP)
            case _:
                await other.change()
    plan = await adopter.make_plan()
    assert isinstance(plan, AdoptionPlan)

    await adopter.adopt(plan, None)

    expected: dict[tuple[str, ...], Any] = {}
    for row in await fetch(pool, OLD_SQL):
        key = (row["business_location_id"], row["resource_type"], row["resource_id"])
        document = as_object(row["data"])
        if key[0] != "who-knows" and key[2] and document is not None:
            expected[key] = document
    got = {tuple(row.values())[:3]: json.loads(row["data"]) for row in await fetch(pool, OURS_SQL)}
    assert expected == got
