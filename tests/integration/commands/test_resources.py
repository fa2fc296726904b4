from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.postgres.databases import ShardMaker
from support.postgres.histories import keep_history
from support.postgres.move_cases import settings_of
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_worker.commands.output import Answer, show
from simplu_worker.commands.resources.reading import differences, list_resources, show_history, show_resource
from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.timing.clock import utc_now

PATIENT = (*TENANT, "patient")


@pytest.mark.slow(0.3)
async def test_resources_are_shown_as_they_were(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address = await make_shard("a")
    settings = settings_of(tmp_path, address)
    pool = ShardPool(address, size=1)
    await add_tenant(pool)
    case = TenantCase(pool, TENANT)
    await case.apply(case.operation("create", "old", {"a": 1}), case.operation("create", "r1", {"a": 1}))
    before = utc_now()
    await keep_history(pool, "patient")
    changes = [case.operation("patch", "r1", {"b": 2}), case.operation("create", "r2", {"c": 3})]
    await case.apply_each(*changes, case.operation("delete", "r1"))
    (row,) = await fetch(pool, "SELECT applied_at FROM resource_history WHERE resource_id = 'r2'")
    await pool.close()

    async def ask(answer: Any, expected: int = 0) -> Any:
        found: Answer | int = await answer
        capfd.readouterr()

        async def whole() -> Answer | int:
            return found

        assert await show(whole(), as_json=True) == expected
        return json.loads(capfd.readouterr().out)

    history = await ask(show_history(settings, (*PATIENT, "r1"), None, 50, is_diff=True))
    assert [(one["version"], one["change"], one["changes"]) for one in history["versions"]] == [
        (2, "delete", [{"path": "/a", "before": 1}, {"path": "/b", "before": 2}]),
        (1, "patch", [{"path": "/b", "after": 2}]),
        (0, "before the history", [{"path": "/a", "after": 1}]),
    ]
    (older,) = (await ask(show_history(settings, (*PATIENT, "r1"), 1, 50)))["versions"]
    assert (older["version"], older["document"], older["appliedAt"]) == (0, {"a": 1}, None)
    first = await ask(show_resource(settings, (*PATIENT, "r1"), None, 1))
    assert (first["resource"]["document"], first["resource"]["requestId"]) == ({"a": 1, "b": 2}, changes[0].request_id)
    assert await ask(show_resource(settings, (*PATIENT, "r1"), utc_now(), None), 1) == {"resource": None}
    with pytest.raises(PermanentError, match="expected a time from"):
        await show_resource(settings, (*PATIENT, "r1"), before, None)
    with pytest.raises(PermanentError, match="has no history"):
        await show_history(settings, (*TENANT, "treatment", "t"), None, 50)

    found: list[tuple[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = await ask(list_resources(settings, PATIENT, row["applied_at"], 1, after))
        found += [(one["resourceId"], one["document"]) for one in page["resources"]]
        after = page["next"]
    assert found == [("r1", {"a": 1, "b": 2}), ("r2", {"c": 3}), ("old", {"a": 1})]


def test_differences_name_members_by_their_paths() -> None:
    before, after = {"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"b": 1, "c": [2]}, "e": None}

    assert list(differences(before, after)) == [
        {"path": "/a/c", "before": [1], "after": [2]},
        {"path": "/d", "before": 1},
        {"path": "/e", "after": None},
    ]
