"""`tenants move`, `verify`, `rollback` and `cleanup`, with a static map and with a local Citrus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from support.citrus.cases import routed_shards
from support.postgres.databases import ShardMaker, execute
from support.postgres.tenant_cases import TENANT, add_tenant, fetch
from support.postgres.upgrades import make_old_schema
from support.redis.server import RedisServer

from simplu_worker.commands.command_line import UsageError
from simplu_worker.commands.moves.runner import MoveRequest, MoveRunner
from simplu_worker.commands.moves.terms import MoveTerms
from simplu_worker.commands.shards.rebalance import Weight, drain_shard, rebalance_shards
from simplu_worker.commands.tenants.move import move_tenants, read_requests
from simplu_worker.commands.tenants.moved import clean_up_tenants, rollback_tenant, verify_tenant
from simplu_worker.config.settings import Settings, load_settings
from simplu_worker.errors import PermanentError
from simplu_worker.local.processes.watchdog import ProcessGroup
from simplu_worker.shards.moving.planning.readiness import check_shards
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.routing.shard_map import parse_shard_map

TENANT_ID = "-".join(TENANT)
ROWS = """
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT 'clinic-main', 'dental', 'patient', number::text, '{}', now(), now() FROM generate_series(1, 20) AS number
"""


def settings_of(folder: Path, *shards: ShardAddress) -> Settings:
    """Return the settings of a command with a map of *shards*, on the first of which the tenant is pinned."""
    listed = [{"shardId": shard.shard_id, "connectionString": shard.connection_string} for shard in shards]
    path = folder / "map.json"
    path.write_text(json.dumps({"shards": listed, "tenants": {TENANT_ID: shards[0].shard_id}}))
    return load_settings({"AWS_REGION": "eu-west-1", "SHARD_MAP_FILE": str(path)}, for_run=False)


@pytest.fixture(autouse=True)
def _logs_are_not_printed() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture
def group() -> Iterator[ProcessGroup]:
    """Give what ends the servers of a test."""
    with ProcessGroup() as group:
        yield group


@pytest.fixture
async def shards(make_shard: ShardMaker) -> list[ShardAddress]:
    """Give two shards, with a tenant of twenty resources on the first."""
    addresses = [await make_shard("a"), await make_shard("b")]
    await fill(addresses[0])
    return addresses


async def fill(address: ShardAddress) -> None:
    """Put the tenant on a shard."""
    pool = ShardPool(address, size=1)
    await add_tenant(pool)
    await fetch(pool, ROWS)
    await pool.close()


async def ask(address: ShardAddress, query: str) -> Any:
    """Return the rows of a query."""
    pool = ShardPool(address, size=1)
    try:
        return await fetch(pool, query)
    finally:
        await pool.close()


async def move(settings: Settings, shard_id: str, *, dry_run: bool = False) -> int:
    """Move the tenant."""
    request = MoveRequest(*TENANT, shard_id)
    return await move_tenants(settings, [request], MoveTerms(), dry_run=dry_run, as_json=True)


async def test_tenant_moves_is_verified_moved_back_and_cleaned_up(
    shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a person does it; the map names the new home each time."""
    settings = settings_of(tmp_path, *shards)

    assert await move(settings, "b", dry_run=True) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["tenant"], plan["sourceShard"], plan["targetShard"], plan["resources"]) == (TENANT_ID, "a", "b", 20)
    assert await ask(shards[1], "SELECT FROM tenants") == []

    assert await move(settings, "b") == 0
    moved = json.loads(capsys.readouterr().out)
    assert (moved["outcome"], moved["certificate"]["epoch"], "warning" in moved) == ("moved", 2, False)
    assert json.loads((tmp_path / "map.json").read_text())["tenants"].get(TENANT_ID, "b") == "b"
    assert await ask(shards[0], "SELECT step, detail->>'verdict' AS verdict FROM moves") == [
        {"step": "done", "verdict": "equal"}
    ]

    assert await verify_tenant(settings, TENANT, repair=False, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "equal"
    await ask(shards[1], "DELETE FROM resources WHERE \"resourceId\" = '7'")
    assert await verify_tenant(settings, TENANT, repair=False, as_json=False) == 1
    assert "patient 7" in capsys.readouterr().err
    assert await verify_tenant(settings, TENANT, repair=True, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["repaired"] == 1

    assert await rollback_tenant(settings, TENANT, as_json=True) == 0
    back = json.loads(capsys.readouterr().out)
    assert (back["certificate"]["targetShard"], back["certificate"]["epoch"]) == ("a", 3)
    assert await clean_up_tenants(settings, "0s", apply=True, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)["tenants"]
    assert {(one["left"], one["rows"]) for one in found} == {("a", None), ("b", 20)}
    assert await ask(shards[1], "SELECT FROM resources") == []
    assert len(await ask(shards[0], "SELECT FROM resources")) == 20


@pytest.mark.slow(1.5)
async def test_cache_is_cleared_after_moves(
    shards: list[ShardAddress], tmp_path: Path, group: ProcessGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    """Readers may have filled it from the former shard. If Redis does not answer, there is a note."""
    redis = RedisServer(group)
    await redis.start()
    entry = f"simplu:resource:{TENANT_ID}:patient:7"
    await redis.ask("SET", entry, "{}")
    settings = settings_of(tmp_path, *shards)
    settings = settings.model_copy(update={"redis_url": SecretStr(redis.url)})

    assert await move(settings, "b") == 0
    assert (await redis.ask("EXISTS", entry), await redis.ask("GET", "simplu:epoch")) == (0, "1")
    redis.kill()
    assert await move(settings, "a") == 0
    assert "the cache was not cleared" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["active", "destroyed"])
async def test_copy_is_deleted_by_a_rollback_before_the_commit(
    shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    """What a killed command has left, also of a tenant that was destroyed since."""
    settings = settings_of(tmp_path, *shards)
    await ask(shards[0], f"UPDATE tenants SET state = '{state}'")
    await ask(
        shards[1],
        "INSERT INTO tenants (id, business_id, location_id, business_type, state, epoch, move_token, control_at,"
        " created_at) VALUES ('clinic-main', 'clinic', 'main', 'dental', 'incoming', 2, 1, now(), now())",
    )
    await ask(shards[1], ROWS)

    assert await rollback_tenant(settings, TENANT, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"tenant": TENANT_ID, "outcome": "undone", "rowsDeleted": 20}
    assert await ask(shards[1], "SELECT FROM tenants") == []
    assert await ask(shards[0], "SELECT state FROM tenants") == [{"state": state}]
    assert await ask(shards[0], "SELECT step FROM moves") == [{"step": "undone"}]


@pytest.mark.parametrize(
    ("tenant", "shard_id", "error"),
    [
        (("no", "body"), "b", "expected a tenant of some shard, got none"),
        (TENANT, "a", "its home is shard a already"),
        (TENANT, "z", "expected one of a, b, got a shard that is unknown"),
    ],
)
async def test_move_that_cannot_be_is_refused_with_the_reason(
    shards: list[ShardAddress],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tenant: tuple[str, str],
    shard_id: str,
    error: str,
) -> None:
    """Nothing is written, and other tenants move."""
    settings = settings_of(tmp_path, *shards)
    requests = [MoveRequest(*tenant, shard_id)]
    if tenant != TENANT:
        requests.append(MoveRequest(*TENANT, "b"))

    assert await move_tenants(settings, requests, MoveTerms(), dry_run=False, as_json=True) == 1
    results = {one["tenant"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert error in results["-".join(tenant)]["error"]
    assert [one["outcome"] for name, one in results.items() if name != "-".join(tenant)] == ["moved"] * (
        len(requests) - 1
    )


async def test_shard_of_the_schema_before_is_refused(make_shard: ShardMaker, tmp_path: Path) -> None:
    """With the command that upgrades it."""
    addresses = [await make_shard("a"), await make_shard("shard-2", is_empty=True)]
    await make_old_schema(addresses[1])
    async with routed_shards(addresses) as routed:
        with pytest.raises(
            PermanentError, match="expected schema version 3 or newer, got 2; run: simplu-worker shards"
        ):
            await check_shards(routed.locator, routed.pools, "a", "shard-2")


async def test_role_that_may_not_copy_is_refused(shards: list[ShardAddress]) -> None:
    """COPY may not write tables with policies that are in force."""
    await execute(
        shards[1].connection_string,
        "CREATE ROLE mover_guest LOGIN; GRANT USAGE ON SCHEMA public TO mover_guest;"
        " GRANT ALL ON ALL TABLES IN SCHEMA public TO mover_guest",
    )
    try:
        guest = ShardAddress("b", f"postgresql://mover_guest@{shards[1].connection_string.rpartition('@')[2]}")
        async with routed_shards([shards[0], guest]) as routed:
            with pytest.raises(PermanentError, match="expected the role that owns the tables"):
                await check_shards(routed.locator, routed.pools, "a", "b")
    finally:
        await execute(shards[1].connection_string, "DROP OWNED BY mover_guest; DROP ROLE mover_guest")


async def test_citrus_is_given_the_new_home(shards: list[ShardAddress], tmp_path: Path) -> None:
    """By PUT; one that does not answer leaves a warning, and the tenant is where it is."""
    settings = settings_of(tmp_path, *shards)
    async with routed_shards(shards) as routed:
        routed.register(TENANT, "a")
        runner = MoveRunner(settings, cast("Any", routed), MoveTerms(), as_json=True)
        assert await runner._publish(TENANT_ID, "b") is None
        assert routed.citrus.registry.homes[TENANT_ID].shard_id == "b"
        routed.citrus.faults.status = 405
        warning = await runner._publish(TENANT_ID, "a")
    assert warning is not None
    assert "keep the old shard" in warning


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("clinic,main\n", "expected business,location,shard in line 1"),
        ("clinic,main,\n", "in line 1"),
        ("a,b,x\na,b,y\n", "expected each tenant once, got a-b twice"),
        ("", "for each tenant in .*, got none"),
        ("# none\n\n", "for each tenant in .*, got none"),
        ("clinic,main,b\na\0b,c,d\n", "in line 2|line contains NUL"),
        (f'"{"x" * 200_000}",main,b\n', "field larger than field limit"),
        (f"{'x' * 1000},main,b\n", "in line 1, got 'x{200}'"),
    ],
)
def test_file_of_moves_is_refused_with_the_line(tmp_path: Path, text: str, error: str) -> None:
    """Before anything is moved."""
    path = tmp_path / "moves.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=error):
        read_requests(path)


def test_file_of_moves_has_a_line_for_each_tenant(tmp_path: Path) -> None:
    """Comments and empty lines are left out; spreadsheets begin a file with a byte order mark."""
    path = tmp_path / "moves.csv"
    path.write_text(
        '\ufeff# to the new shard\n\nclinic, main ,b\n"smile, ltd",berlin,c\r\n', encoding="utf-8", newline=""
    )
    assert read_requests(path) == [MoveRequest("clinic", "main", "b"), MoveRequest("smile, ltd", "berlin", "c")]


async def test_tenant_with_two_homes_is_moved_once_at_most(
    make_shard: ShardMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answers of shards are not of one moment; the mover finds out whether the tenant is split."""
    addresses = [await make_shard(name) for name in "abc"]
    for address in addresses[:2]:
        await fill(address)
    settings = settings_of(tmp_path, *addresses)
    content = json.loads((tmp_path / "map.json").read_text())
    (tmp_path / "map.json").write_text(json.dumps(content | {"tenants": {TENANT_ID: "c"}}))

    assert await rebalance_shards(settings, None, MoveTerms(), apply=True, as_json=True) == 1
    plan, *results = capsys.readouterr().out.splitlines()
    assert len(json.loads(plan)["plan"]) == 2
    (result,) = results
    assert "expected one home, got a and b" in json.loads(result)["error"]


async def test_shard_that_leads_to_a_home_by_way_of_another_one_is_kept(
    make_shard: ShardMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A map that could not be written names the first shard; its row leads to the second, and that one to the third."""
    addresses = [await make_shard(name) for name in "abc"]
    await fill(addresses[0])
    settings = settings_of(tmp_path, *addresses)
    content = (tmp_path / "map.json").read_text()
    for shard_id in "bc":
        assert await move(settings, shard_id) == 0
        (tmp_path / "map.json").write_text(content)
    capsys.readouterr()

    assert await drain_shard(settings, "b", MoveTerms(), apply=True, as_json=False) == 1
    assert "1 tenants have left it, and are still looked for there" in capsys.readouterr().err


async def test_shard_is_drained_and_filled_again(
    shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan first; then all tenants have left, and the map names their new shard."""
    settings = settings_of(tmp_path, *shards)

    assert await drain_shard(settings, "a", MoveTerms(), apply=False, as_json=True) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["before"], {name: count for name, count in plan["after"].items() if count}) == ({"a": 1}, {"b": 1})
    (planned,) = plan["plan"]
    assert (planned["tenant"], planned["targetShard"], planned["resources"]) == (TENANT_ID, "b", 20)
    assert planned["durationS"] > 0
    assert await drain_shard(settings, "a", MoveTerms(), apply=True, as_json=False) == 0
    assert "it can be retired in the map or Citrus" in capsys.readouterr().err
    assert await ask(shards[1], "SELECT state FROM tenants") == [{"state": "active"}]

    content = json.loads((tmp_path / "map.json").read_text())
    home = parse_shard_map(json.dumps(content | {"tenants": {}}).encode(), ()).shard_of(TENANT_ID).shard_id
    (tmp_path / "map.json").write_text(json.dumps(content | {"tenants": {}}))
    assert await rebalance_shards(settings, None, MoveTerms(), apply=True, as_json=True) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[0])["plan"]) == (home == "a")
    assert await rebalance_shards(settings, Weight.ROWS, MoveTerms(), apply=False, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["before"] == {home: 20}
    assert await rebalance_shards(settings, Weight.LOAD, MoveTerms(), apply=False, as_json=True) == 0
    assert await rebalance_shards(settings, Weight.BYTES, MoveTerms(), apply=False, as_json=True) == 0
