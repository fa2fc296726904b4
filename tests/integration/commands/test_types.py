from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.citrus.cases import silent
from support.postgres.databases import PoolMaker, ShardMaker, execute
from support.postgres.tenant_cases import TenantCase, add_tenant, fetch
from support.settings import settings_of

from simplu_worker.commands.output import show
from simplu_worker.commands.types import business_types
from simplu_worker.commands.types.business_types import apply_types, check_types, show_types
from simplu_worker.config.settings import Settings
from simplu_worker.operations.schema_judge import Schema, count_findings
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.tenants import resource_changes

EXAMPLES = Path(__file__).parents[3] / "tests" / "support" / "business_types"


Answer = tuple[int, dict[str, Any]]


class Terminal:
    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str], *shards: ShardAddress) -> None:
        self.types = folder / "types"
        self.types.mkdir()
        self._settings = settings_of(folder, *shards)
        self._capfd = capfd

    def write(self, *names: str) -> None:
        for name in names:
            (self.types / f"{name}.json").write_bytes((EXAMPLES / f"{name}.json").read_bytes())

    async def apply(self, *, apply: bool = True, remove: tuple[str, ...] = ()) -> Answer:
        status, answer = await self._run(
            lambda settings: show(apply_types(settings, self.types, remove, apply=apply), as_json=True)
        )
        return status, answer | {shard["shardId"]: shard for shard in answer["shards"]}

    async def show(self, name: str | None = None) -> Answer:
        return await self._run(lambda settings: show(show_types(settings, name), as_json=True))

    async def check(self) -> Answer:
        return await self._run(lambda settings: show(check_types(settings, self.types), as_json=True))

    async def _run(self, command: Callable[[Settings], Awaitable[int]]) -> Answer:
        self._capfd.readouterr()
        status = await command(self._settings)
        return status, json.loads(self._capfd.readouterr().out)


TerminalMaker = Callable[..., Terminal]


@pytest.fixture
def make_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> TerminalMaker:
    return partial(Terminal, tmp_path, capfd)


def states_of(answer: Answer) -> tuple[int, dict[str, str]]:
    return answer[0], {shard["shardId"]: shard["state"] for shard in answer[1]["shards"]}


async def test_types_apply_plans_first_and_then_does_it_on_all_shards(
    make_shard: ShardMaker, make_terminal: TerminalMaker
) -> None:
    shards = [await make_shard("a"), await make_shard("b"), await make_shard("c", is_empty=True)]
    terminal = make_terminal(*shards)
    terminal.write("bistro", "boutique")

    plan = await terminal.apply(apply=False)
    done = await terminal.apply()
    again = await terminal.apply(apply=False)

    assert states_of(plan) == (0, {"a": "different", "b": "different", "c": "empty"})
    assert plan[1]["a"]["types"] == {"bistro": "new", "boutique": "new"}
    assert states_of(done) == (0, {"a": "applied", "b": "applied", "c": "empty"})
    assert states_of(again) == (0, {"a": "current", "b": "current", "c": "empty"})


@pytest.mark.slow(0.3)
async def test_silent_shard_is_named_and_the_others_are_done(
    make_shard: ShardMaker, make_terminal: TerminalMaker
) -> None:
    shards = [await make_shard("a"), await make_shard("b"), silent("c")]
    await execute(shards[0].connection_string, "CREATE TABLE boutique_sales ()")
    terminal = make_terminal(*shards)
    terminal.write("boutique")

    answer = await terminal.apply()

    assert states_of(answer) == (1, {"a": "refused", "b": "applied"})
    assert answer[1]["shardsWithoutAnswer"] == ["c"]
    assert "boutique_sales is there, and no view of a business type" in answer[1]["a"]["problems"][0]
    status, shown = await terminal.show("boutique")
    assert (status, shown["shardsWithoutAnswer"]) == (1, ["c"])
    (version,) = shown["types"]
    assert (version["shards"], version["missing"], version["writtenBy"]) == (["b"], ["a"], "types apply")
    assert version["definition"] == (EXAMPLES / "boutique.json").read_text()


@pytest.mark.slow(0.3)
async def test_types_check_counts_the_resources_that_no_file_knows(
    make_shard: ShardMaker, make_pool: PoolMaker, make_terminal: TerminalMaker
) -> None:
    address = await make_shard("a")
    terminal = make_terminal(address, await make_shard("b"))
    terminal.write("bistro")
    await terminal.apply()
    pool = await make_pool(address)
    for name, kind in ((("r", "1"), "bistro"), (("r", "2"), "bistro"), (("d", "1"), "dental")):
        await add_tenant(pool, name, business_type=kind)
        case = TenantCase(pool, name)
        await case.apply(
            *(case.operation("create", f"x{n}", {}, resource_type="dish") for n in range(3)),
            *(
                case.operation("create", "x", {}, resource_type=known)
                for known in ("order", "tables", "role", "waiter")
            ),
            case.operation("create", "x", {}, resource_type="zebra"),
        )

    status, answer = await terminal.check()

    assert (status, answer["types"], answer["shardsWithoutAnswer"]) == (1, ["bistro"], [])
    assert answer["unknown"] == [
        {"shardId": "a", "type": "bistro", "resourceType": "dish", "resources": 6, "tenants": 2},
        {"shardId": "a", "type": "bistro", "resourceType": "zebra", "resources": 2, "tenants": 2},
    ]


@pytest.mark.parametrize(
    ("page_rows", "page_bytes", "count"), [(2, 10_000, 2), (200, 10_000, 7), (200, 200, 4), (200, 1, 1)]
)
async def test_types_check_counts_the_documents_that_do_not_fit(
    make_shard: ShardMaker,
    make_pool: PoolMaker,
    make_terminal: TerminalMaker,
    monkeypatch: pytest.MonkeyPatch,
    page_rows: int,
    page_bytes: int,
    count: int,
) -> None:
    """All pages of all tenants, under each name, by the place in the schema; whatever would follow from it.

    A page has few documents if they are large.
    """
    monkeypatch.setattr(business_types, "PAGE_ROWS", page_rows)
    monkeypatch.setattr(business_types, "PAGE_BYTES", page_bytes)
    pages: list[int] = []

    def count_page(schema: Schema, documents: Sequence[bytes]) -> Counter[str]:
        pages.append(len(documents))
        return count_findings(schema, documents)

    monkeypatch.setattr(business_types, "count_findings", count_page)
    address = await make_shard("a")
    terminal = make_terminal(address)
    terminal.write("bistro")
    pool = await make_pool(address)
    fits = {"guest": {"name": "Ada"}, "startsAt": "2026-07-01T19:00Z", "guests": 2}
    for location in ("1", "2"):
        await add_tenant(pool, ("r", location), business_type="bistro")
        case = TenantCase(pool, ("r", location))
        await case.apply(
            *(case.operation("create", f"x{n}", fits, resource_type="reservation") for n in range(4)),
            *(case.operation("create", f"y{n}", {"guests": 2}, resource_type="reservation") for n in range(3)),
            case.operation("create", "z", fits | {"guests": 0}, resource_type="reservations"),
        )

    status, answer = await terminal.check()

    assert (status, answer["unknown"]) == (1, [])
    found = {"shardId": "a", "type": "bistro", "resourceType": "reservation"}
    assert answer["findings"] == [
        {**found, "resources": 6, "schemaPath": "#/required"},
        {**found, "resources": 2, "schemaPath": "#/properties/guests/minimum"},
    ]
    assert max(pages) == count


async def test_resources_under_other_names_are_moved(
    make_shard: ShardMaker, make_pool: PoolMaker, make_terminal: TerminalMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(business_types, "REREAD_S", 0.0)
    monkeypatch.setattr(resource_changes, "PAGE_ROWS", 2)
    address = await make_shard("a")
    terminal = make_terminal(address)
    terminal.write("bistro")
    pool = await make_pool(address)
    await add_tenant(pool, ("r", "1"), business_type="bistro")
    await add_tenant(pool, ("r", "2"), business_type="bistro", state="fenced")
    # As workers stored them before the type had the name.
    await fetch(
        pool,
        'INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")'
        " SELECT 'r-1', 'bistro', name, 'x' || n, '{}'::jsonb, now(), now() FROM generate_series(1, 7) AS n,"
        " unnest('{tables,order}'::text[]) AS name"
        " UNION ALL SELECT 'r-1', 'bistro', 'table', 'x2', '{}', now(), now()"
        " UNION ALL SELECT 'r-2', 'bistro', 'tables', 'x1', '{}', now(), now()",
    )

    plan = await terminal.apply(apply=False)
    done = await terminal.apply()
    checked = await terminal.check()

    found = {"shardId": "a", "type": "bistro", "resourceType": "tables", "storedAs": "table", "tenants": 2}
    assert plan[0] == 0
    assert plan[1]["a"]["otherNames"] == [{**found, "resources": 8, "underBoth": 1}]
    left = [{**found, "resources": 2, "underBoth": 1}]
    assert (done[0], done[1]["a"]["moved"], done[1]["a"]["otherNames"]) == (1, 6, left)
    assert (checked[0], checked[1]["otherNames"]) == (1, left)
    query = "SELECT \"resourceName\" AS name, count(*) AS count FROM resources WHERE id = 'r-1' GROUP BY 1 ORDER BY 1"
    assert [tuple(row.values()) for row in await fetch(pool, query)] == [("order", 7), ("table", 7), ("tables", 1)]
    marked = (
        "SELECT types[type_at] AS name, count(DISTINCT resource) AS count FROM log_rows"
        " JOIN log_batches USING (batch_id) GROUP BY 1"
    )
    assert {tuple(row.values()) for row in await fetch(pool, marked)} == {("table", 6), ("tables", 6)}

    await fetch(pool, "DELETE FROM resources WHERE \"resourceName\" = 'tables' AND \"resourceId\" = 'x2'")
    await fetch(pool, "UPDATE tenants SET state = 'active'")
    last = await terminal.apply()

    assert (last[0], last[1]["a"]["moved"], last[1]["a"]["otherNames"]) == (0, 1, [])
