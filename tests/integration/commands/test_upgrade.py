"""`shards upgrade`: the plan, its execution, and the output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.citrus.cases import silent
from support.postgres.databases import ShardMaker, execute
from support.settings import settings_in

from simplu_worker.commands.shards.upgrade import (
    UpgradeProgress,
    UpgradeReport,
    UpgradeStatus,
    describe_activity,
    upgrade_shards,
)
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.network_errors import NO_SERVER
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.schema.schema_check import SCHEMA_VERSION
from simplu_worker.shards.schema.upgrade import Blocker, UpgradeActivity

TITLE = "ALTER TABLE tenants ADD COLUMN note text"
BLOCKER = Blocker(4711, "nightly-report", "analyst", "client backend", "idle in transaction", 61.4)


def settings_of(folder: Path, *shards: ShardAddress) -> Settings:
    """Return the settings of a worker with a static map of *shards*."""
    listed = [{"shardId": shard.shard_id, "connectionString": shard.connection_string} for shard in shards]
    path = folder / "map.json"
    path.write_text(json.dumps({"shards": listed}))
    return settings_in({"AWS_REGION": "eu-west-1", "SHARD_MAP_FILE": str(path)})


async def answer_of(
    capfd: pytest.CaptureFixture[str], settings: Settings, *shard_ids: str, apply: bool = False
) -> tuple[int, dict[str, Any]]:
    """Return the status of the command, and its output by shard."""
    capfd.readouterr()
    status = await upgrade_shards(settings, shard_ids, apply=apply, timeout_s=10, as_json=True)
    out = capfd.readouterr().out  # with the log, which is not set up here
    answer = json.loads(out[out.index('{\n  "schemaVersion"') :])
    assert answer["schemaVersion"] == SCHEMA_VERSION
    assert answer["applied"] == apply
    return status, {shard["shardId"]: shard for shard in answer["shards"]}


def states_of(shards: dict[str, Any]) -> dict[str, str]:
    """Return how the schemas stand."""
    return {shard_id: shard["state"] for shard_id, shard in shards.items()}


async def lose_gym(address: ShardAddress) -> None:
    """Have a shard lack the file of a business type, as after a release with another one."""
    await execute(address.connection_string, "UPDATE business_types SET digest = '' WHERE name = 'gym'")


async def test_shards_upgrade_plans_first_and_then_does_it(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    current, empty = await make_shard("a-current"), await make_shard("b-empty", is_empty=True)
    behind = [await make_shard("c-behind"), await make_shard("d-behind")]
    for address in behind:
        await lose_gym(address)
    settings = settings_of(tmp_path, current, empty, *behind)

    plan = await answer_of(capfd, settings)
    named = await answer_of(capfd, settings, "d-behind", apply=True)
    done = await answer_of(capfd, settings, apply=True)
    again = await answer_of(capfd, settings)

    assert [status for status, _ in (plan, named, done, again)] == [0, 0, 0, 0]
    expected = {"a-current": "current", "b-empty": "empty", "c-behind": "behind", "d-behind": "behind"}
    assert states_of(plan[1]) == expected
    assert plan[1]["c-behind"] == {
        "shardId": "c-behind",
        "place": behind[0].place,
        "state": "behind",
        "schemaVersion": SCHEMA_VERSION,
        "targetVersion": SCHEMA_VERSION,
        "migrations": [],
        "businessTypes": ["gym"],
    }
    assert states_of(named[1]) == {"d-behind": "upgraded"}
    assert states_of(done[1]) == expected | {"c-behind": "upgraded", "d-behind": "current"}
    assert states_of(again[1]) == expected | {"c-behind": "current", "d-behind": "current"}


async def test_shards_upgrade_creates_the_schema_of_an_empty_shard_that_is_named(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    named, other = await make_shard("a-named", is_empty=True), await make_shard("b-other", is_empty=True)
    settings = settings_of(tmp_path, named, other)

    assert await upgrade_shards(settings, ["a-named"], apply=False, timeout_s=60, as_json=False) == 0
    assert "to create it: simplu-worker shards upgrade a-named --apply" in capfd.readouterr().err
    status, created = await answer_of(capfd, settings, "a-named", apply=True)
    assert (status, created["a-named"]["state"], created["a-named"]["schemaVersion"]) == (0, "created", SCHEMA_VERSION)
    assert states_of((await answer_of(capfd, settings, "a-named", apply=True))[1]) == {"a-named": "current"}
    assert states_of((await answer_of(capfd, settings, apply=True))[1]) == {"a-named": "current", "b-other": "empty"}


async def test_shards_upgrade_fails_for_the_shards_that_cannot_be_upgraded_alone(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newer, strange = await make_shard("a-newer"), await make_shard("b-strange", is_empty=True)
    behind = await make_shard("c-behind")
    await execute(newer.connection_string, "INSERT INTO schema_migrations (version, name) VALUES (99, 'later')")
    await execute(strange.connection_string, "CREATE TABLE orders (id int)")
    await lose_gym(behind)
    settings = settings_of(tmp_path, newer, strange, behind, silent("d-down"))

    status, shards = await answer_of(capfd, settings, apply=True)

    assert status == 1
    assert states_of(shards) == {
        "a-newer": "refused",
        "b-strange": "failed",
        "c-behind": "upgraded",
        "d-down": "failed",
    }
    assert "got 99; a schema never goes backwards" in shards["a-newer"]["error"]
    assert "another program's tables" in shards["b-strange"]["error"]
    assert shards["d-down"]["error"] == NO_SERVER


async def test_shards_upgrade_prints_a_table_and_what_to_do(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    behind = await make_shard("shard-1")
    await lose_gym(behind)
    settings = settings_of(tmp_path, behind)

    assert await upgrade_shards(settings, (), apply=False, timeout_s=10, as_json=False) == 0
    planned = capfd.readouterr()
    assert await upgrade_shards(settings, (), apply=True, timeout_s=10, as_json=False) == 0
    done = capfd.readouterr()

    assert "behind" in planned.out
    assert "gym" in planned.out
    assert f"{SCHEMA_VERSION} and newer" in planned.out
    assert "nothing was changed; --apply upgrades the shards" in planned.err
    assert "upgraded" in done.out
    assert "shard-1: upgraded (1 of 1)" in done.err
    assert "postgresql://" not in planned.out + planned.err + done.out + done.err


async def test_shards_upgrade_refuses_a_shard_that_nobody_knows(make_shard: ShardMaker, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, await make_shard("shard-1"))

    with pytest.raises(PermanentError, match="expected shards out of shard-1; got shard-9"):
        await upgrade_shards(settings, ("shard-1", "shard-9"), apply=True, timeout_s=10, as_json=False)


@pytest.mark.parametrize(
    ("activity", "text"),
    [
        (UpgradeActivity(TITLE, 0, 3), TITLE),
        (UpgradeActivity(TITLE, 0, 3, share=0.345), f"{TITLE} 34%"),
        (
            UpgradeActivity(TITLE, 0, 3, waits_for=[BLOCKER]),
            f"{TITLE}, waits for pid 4711 (nightly-report, of analyst, idle in transaction, for 61 s)",
        ),
        (
            UpgradeActivity(TITLE, 0, 3, waits_for=[Blocker(0), Blocker(12, "", None, "autovacuum worker", "active")]),
            f"{TITLE}, waits for a prepared transaction, pid 12 (autovacuum worker, active)",
        ),
        (UpgradeActivity(TITLE, 0, 3, waits_for=[Blocker(12, "\x1b[2J")]), f"{TITLE}, waits for pid 12 (\\x1b[2J)"),
    ],
)
def test_doing_is_described_in_a_line(activity: UpgradeActivity, text: str) -> None:
    assert describe_activity(activity) == text


def test_progress_says_now_and_then_whom_a_shard_waits_for_when_it_is_no_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    waiting = UpgradeActivity(TITLE, 0, 3, waits_for=[BLOCKER])
    with UpgradeProgress(2, clock=lambda: now[0]) as progress:
        for now[0] in (0.0, 5.0, 9.9, 10.0, 12.0):
            progress.show("shard-1", waiting)
            progress.show("shard-1", UpgradeActivity(TITLE, 1, 3))
        progress.show("shard-2", waiting)
        for shard_id, status in (("shard-1", UpgradeStatus.UPGRADED), ("shard-2", UpgradeStatus.FAILED)):
            progress.end(UpgradeReport(ShardAddress(shard_id, ""), status))
    lines: Sequence[str] = capfd.readouterr().err.splitlines()

    assert [line.partition(":")[0] for line in lines] == ["shard-1", "shard-1", "shard-2", "shard-1", "shard-2"]
    assert lines[-1] == "shard-2: failed (2 of 2)"
