"""One tenant is put back to a backup of its shard: its resources and its log are what the mode needs, and only its."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.postgres.databases import ShardMaker
from support.postgres.snapshots import copy_rows
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.shards.settling import MoveSettler, SupersededError
from simplu_worker.transfers import engine
from simplu_worker.transfers import restoring as module
from simplu_worker.transfers.moving.mover import Mover
from simplu_worker.transfers.moving.sides import MoveUndo
from simplu_worker.transfers.moving.types import Move, MoveOptions
from simplu_worker.transfers.restoring import Restore, RestoreCertificate, RestoreMode, Restorer
from simplu_worker.vocabulary import TransferStep

pytestmark = pytest.mark.slow


TENANT_ID = "clinic-main"
OTHER = ("clinic", "north")
KEPT = timedelta(days=15)
TRANSACTIONS = {RestoreMode.CATCH_UP: 12, RestoreMode.AS_OF_BACKUP: 10}  # of few rows; the last one reads
POSITION = "INSERT INTO stream_positions (stream, stream_shard_id, pending_from, pending_since, parents_done, token)"
POSITION += " VALUES ('stream', $1, $2, now(), true, gen_random_uuid())"


class World:
    def __init__(self, pools: Pools, live: ShardPool, backup: ShardPool, folder: Path) -> None:
        self.locator = StaticMap(ShardMap((MappedShard("a", live.address.connection_string),)))
        self.pools = pools
        self.live = live
        self.backup = backup
        self.folder = folder
        self.commits = ReplicationWaiter(pools)
        self.case = TenantCase(live, TENANT)
        self.other = TenantCase(live, OTHER)
        self.statuses: list[engine.TransferStatus] = []
        self.since: list[Operation] = []

    def restorer(self, mode: RestoreMode, export: str = "export.jsonl") -> Restorer:
        restore = Restore(TENANT_ID, "a", mode, self.folder / export, KEPT)
        return Restorer(self.locator, self.pools, self.backup, self.commits, restore, show=self.statuses.append)

    async def restore(self, mode: RestoreMode, export: str = "export.jsonl") -> RestoreCertificate:
        return await self.restorer(mode, export).run()

    async def ask(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        return await fetch(self.live, query, *arguments)

    async def tenant(self) -> tuple[str, int]:
        (row,) = await self.ask("SELECT state, epoch FROM tenants WHERE id = $1", TENANT_ID)
        return row["state"], row["epoch"]

    def exported(self, export: str = "export.jsonl") -> list[dict[str, Any]]:
        text = (self.folder / export).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


@pytest.fixture
async def world(make_shard: ShardMaker, tmp_path: Path) -> AsyncIterator[World]:
    """Give a shard that has gone on after its backup: two tenants with three operations each before, and after."""
    address, of_backup = await make_shard("a"), await make_shard("a")
    async with Pools(size=6) as pools, Pools(size=3) as backups:
        world = World(pools, pools.ensure_pool(address), backups.ensure_pool(of_backup), tmp_path)
        for case in (world.case, world.other):
            await add_tenant(world.live, case.ids)
            await case.apply(*[case.operation("create", f"r{n}", {"text": 'a\n"\\b\u2028é', "n": n}) for n in range(3)])
        await world.ask(POSITION, "shard-0", "5/0")
        await copy_rows(world.live, world.backup)
        await world.ask("UPDATE stream_positions SET pending_from = '9/0', token = gen_random_uuid()")
        await world.ask(POSITION, "child", "12/0")
        world.since = [
            world.case.operation("update", "r0", {"is": "spoilt"}),
            world.case.operation("delete", "r1"),
            world.case.operation("create", "r9", {"is": "spoilt"}),
        ]
        await world.case.apply(*world.since)
        await world.other.apply(world.other.operation("delete", "r0"))
        yield world


def are_duplicates(outcomes: list[Outcome]) -> bool:
    return {one.disposition for one in outcomes} == {Disposition.DUPLICATE}


async def test_tenant_is_as_of_the_backup_and_what_came_since_stays_undone(world: World) -> None:
    others, positions = await world.other.everything(), await world.ask("SELECT * FROM stream_positions ORDER BY 2")
    wanted, log = await TenantCase(world.backup, TENANT).resources(), await world.case.log()

    certificate = await world.restore(RestoreMode.AS_OF_BACKUP)

    assert await world.case.resources() == wanted
    assert await world.case.log() == log
    assert await world.tenant() == ("active", 2)
    assert are_duplicates(await world.case.apply(*world.since))
    assert await world.case.resources() == wanted
    assert await world.other.everything() == others
    assert await world.ask("SELECT * FROM stream_positions ORDER BY 2") == positions
    assert (certificate.rows_restored, certificate.resources_before, certificate.epoch) == (3, 3, 2)
    assert await world.ask("SELECT step, detail->>'mode' AS mode FROM transfers") == [
        {"step": "done", "mode": "as-of-backup"}
    ]


@pytest.mark.parametrize(("days", "added"), [(14, 2), (16, 0)])
async def test_log_gets_what_only_the_backup_has(
    world: World, monkeypatch: pytest.MonkeyPatch, days: int, added: int
) -> None:
    monkeypatch.setattr(module, "COMPARED_ROWS", 2)
    await world.case.apply(*[world.case.operation("read", "r0", request_id=f"a{n}") for n in range(8)])
    lost = [row["request_id"] for row in await fetch(world.backup, "SELECT request_id FROM operations")][:2]
    await world.ask("DELETE FROM log_rows WHERE request IN (simplu_key($1), simplu_key($2))", *lost)
    await fetch(world.backup, "UPDATE log_batches SET completed_at = now() - $1::interval", timedelta(days=days))

    await world.restore(RestoreMode.AS_OF_BACKUP)

    assert len((await world.case.log()).keys() & set(lost)) == added
    rounds = [one.row_count for one in world.statuses if one.phase == "compare the logs"]
    assert rounds[:3] == [0, 0, 0]  # each reads two rows of either log


async def test_tenant_catches_up_from_the_log_and_the_positions_of_the_backup(world: World) -> None:
    backup = TenantCase(world.backup, TENANT)
    others, tokens = await world.other.everything(), await world.ask("SELECT token FROM stream_positions")

    await world.restore(RestoreMode.CATCH_UP)

    assert await world.case.resources() == await backup.resources()
    assert await world.case.log() == await backup.log()
    assert await world.other.everything() == others
    (row,) = await world.ask("SELECT stream_shard_id, pending_from, parents_done, token FROM stream_positions")
    assert (row["stream_shard_id"], row["pending_from"], row["parents_done"]) == ("shard-0", "5/0", True)
    assert row["token"] not in [one["token"] for one in tokens]
    outcomes = await world.case.apply(*world.since)
    assert [(one.disposition, one.failure) for one in outcomes] == [(Disposition.APPLIED, None)] * 3


@pytest.mark.parametrize("mode", RestoreMode)
async def test_what_is_overwritten_is_in_the_file(world: World, mode: RestoreMode) -> None:
    resources, log = await world.case.resources(), await world.case.log()

    await world.restore(mode)

    header, *rows, end = world.exported()
    assert header == {"tenant": TENANT_ID, "shard": "a", "mode": mode}
    found = [one["row"] for one in rows if one["table"] == "resources"]
    assert {(one["resourceName"], one["resourceId"]): one["data"] for one in found} == resources
    assert {one["row"]["request_id"] for one in rows if one["table"] == "operations"} == set(log)
    assert end == {"end": {"resources": len(resources), "operations": len(log)}}
    assert (world.folder / "export.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("mode", "killed_at"), [(mode, n + 1) for mode, count in TRANSACTIONS.items() for n in range(count)]
)
async def test_restorer_that_is_killed_is_continued_by_the_next_one(
    world: World, mode: RestoreMode, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, log = await world.case.resources(), await world.case.log()
    original, count = world.live.transaction, 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count >= killed_at:
            raise asyncio.CancelledError  # at the end of the fence too: nothing is written any more
        return original(*args, **options)

    monkeypatch.setattr(world.live, "transaction", counted)
    with pytest.raises(asyncio.CancelledError):
        await world.restore(mode, "first")
    monkeypatch.setattr(world.live, "transaction", original)
    is_released = (await world.tenant())[1] == 2
    certificate = await world.restore(mode, "second")

    backup = TenantCase(world.backup, TENANT)
    assert await world.case.resources() == await backup.resources()
    assert await world.case.log() == (log if mode is RestoreMode.AS_OF_BACKUP else await backup.log())
    assert await world.tenant() == ("active", 3 if is_released else 2)
    assert certificate.export is not None
    rows = [one["row"] for one in world.exported(certificate.export)[1:-1] if one["table"] == "resources"]
    found = {(one["resourceName"], one["resourceId"]): one["data"] for one in rows}
    assert found == (await backup.resources() if is_released else before)
    assert is_released == (killed_at == TRANSACTIONS[mode])


async def test_two_restorers_exclude_each_other(world: World) -> None:
    mode = RestoreMode.AS_OF_BACKUP
    results = await asyncio.gather(world.restore(mode, "1"), world.restore(mode, "2"), return_exceptions=True)

    assert any(isinstance(one, RestoreCertificate) for one in results), results
    assert all(isinstance(one, RestoreCertificate | SupersededError) for one in results), results
    assert await world.case.resources() == await TenantCase(world.backup, TENANT).resources()
    assert (await world.tenant())[0] == "active"


async def test_restorer_that_wakes_up_late_writes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    mode, late = RestoreMode.AS_OF_BACKUP, world.restorer(RestoreMode.AS_OF_BACKUP, "late")
    original, waiting, going_on = late._replace, asyncio.Event(), asyncio.Event()

    async def wait_first() -> None:
        waiting.set()
        await going_on.wait()
        await original()

    monkeypatch.setattr(late, "_replace", wait_first)
    running = asyncio.create_task(late.run())
    await waiting.wait()
    await world.restore(mode, "export.jsonl")
    await world.case.apply(world.case.operation("create", "later", {}))
    after = await world.case.everything()
    going_on.set()

    with pytest.raises(SupersededError, match="another restore has started since"):
        await running
    assert await world.case.everything() == after


@pytest.mark.parametrize("step", ["_replace", "_release"])
async def test_operations_wait_and_no_mover_or_worker_ends_the_fence_while_rows_are_replaced(
    world: World, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer = world.restorer(RestoreMode.AS_OF_BACKUP)
    original, seen = getattr(restorer, step), []
    mover = Mover(world.pools, world.commits, Move(TENANT_ID, "a", "a"), MoveOptions(KEPT), show=lambda _: None)

    async def look_first() -> None:
        seen.extend(await world.case.apply(world.case.operation("create", "held", {})))
        assert not await MoveSettler(world.pools, world.commits).end_overdue_fence("a", TENANT_ID)
        with pytest.raises(PermanentError, match="is being restored"):
            await mover.run()
        with pytest.raises(PermanentError, match="is being restored"):
            await MoveUndo(world.pools, TENANT_ID, "a", "a").run()
        await original()

    monkeypatch.setattr(restorer, step, look_first)
    await restorer.run()

    assert [one.disposition for one in seen] == [Disposition.HOLD]
    assert (await world.tenant())[0] == "active"


async def test_worker_ends_the_fence_of_a_restorer_that_was_killed_before_it_overwrote_anything(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FENCE_S", -1.0)
    restorer = world.restorer(RestoreMode.CATCH_UP)
    before = await world.case.everything()
    await restorer._begin()
    assert (await world.tenant())[0] == "fenced"

    assert await MoveSettler(world.pools, world.commits).end_overdue_fence("a", TENANT_ID)

    assert await world.tenant() == ("active", 1)
    assert await world.case.everything() == before


async def test_nothing_is_overwritten_where_the_file_cannot_be_made(world: World) -> None:
    (world.folder / "export.jsonl").write_text("another one's")
    before = await world.case.everything()

    with pytest.raises(PermanentError, match=r"--export: expected a new file at .*File exists"):
        await world.restore(RestoreMode.CATCH_UP)

    assert await world.tenant() == ("active", 1)
    assert await world.case.everything() == before


async def test_restorer_does_not_trust_its_memory_of_a_shard_that_has_lost_commits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer = world.restorer(RestoreMode.AS_OF_BACKUP)
    original, times = restorer._release, 0

    async def lose_first() -> None:
        nonlocal times
        times += 1
        if times == 1:
            await world.ask("DELETE FROM resources WHERE id = $1", TENANT_ID)  # and never again
            await world.ask("UPDATE transfers SET step = 'replacing', writes = writes - 2")
        await original()

    monkeypatch.setattr(restorer, "_release", lose_first)
    monkeypatch.setattr(engine, "PAUSE_S", 0.01)
    await restorer.run()

    assert times == module.RELEASE_TRIES + 1
    assert await world.case.resources() == await TenantCase(world.backup, TENANT).resources()


async def test_end_without_an_answer_is_no_new_beginning(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PAUSE_S", 0.01)
    original, times = world.commits.wait_for_transaction, 0

    async def wait(*arguments: Any) -> None:
        nonlocal times
        times += 1
        if times == 1:
            raise RetryableError("no answer")
        await original(*arguments)

    monkeypatch.setattr(world.commits, "wait_for_transaction", wait)
    certificate = await world.restore(RestoreMode.CATCH_UP)

    assert (times, await world.tenant()) == (2, ("active", 2))
    assert certificate.rows_restored == 6
    assert [path.name for path in _files(world)] == ["export.jsonl"]


@pytest.mark.parametrize("has_answer", [True, False])
async def test_release_that_is_never_confirmed_is_told_as_one(
    world: World, monkeypatch: pytest.MonkeyPatch, *, has_answer: bool
) -> None:
    monkeypatch.setattr(engine, "PATIENCE_S", 0.1)
    monkeypatch.setattr(engine, "PAUSE_S", 0.01)
    restorer = world.restorer(RestoreMode.AS_OF_BACKUP)
    original = restorer._release

    async def release() -> None:
        await original()
        if not has_answer:
            restorer._step = TransferStep.COPIED
            raise RetryableError("no answer")

    async def never(*_: Any) -> None:
        raise RetryableError("not confirmed")

    monkeypatch.setattr(restorer, "_release", release)
    monkeypatch.setattr(world.commits, "wait_for_transaction", never)

    with pytest.raises(
        RetryableError, match=r"not confirmed; the tenant was released and continues, .* do not restore"
    ):
        await restorer.run()

    assert await world.tenant() == ("active", 2)


def _files(world: World) -> list[Path]:
    return sorted(world.folder.iterdir())


async def test_rows_that_the_tenant_has_left_elsewhere_do_not_count_as_its_own_any_more(world: World) -> None:
    await world.ask(
        "INSERT INTO transfers (tenant_id, kind, place, token, step) VALUES ($1, 'arrival', 'z', '1', 'ready')",
        TENANT_ID,
    )
    await world.restore(RestoreMode.AS_OF_BACKUP)
    assert await world.ask("SELECT FROM transfers WHERE kind = 'arrival'") == []


async def test_tenant_that_is_being_moved_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PATIENCE_S", 0.0)
    monkeypatch.setattr(engine, "PAUSE_S", 0.01)
    until = datetime.now(UTC) + timedelta(minutes=1)
    await world.ask("UPDATE tenants SET state = 'fenced', fenced_until = $2 WHERE id = $1", TENANT_ID, until)

    with pytest.raises(Exception, match="the tenant is being moved; nothing was overwritten"):
        await world.restore(RestoreMode.CATCH_UP)
