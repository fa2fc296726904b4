from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from support.aws.endpoints import client_of
from support.postgres.databases import ShardMaker, execute
from support.postgres.histories import keep_history
from support.postgres.move_cases import settings_of
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_local.processes.loopback import poll_until
from simplu_worker.aws.clients import ThrottledError
from simplu_worker.commands.output import Answer, show
from simplu_worker.commands.resources.reading import (
    VersionView,
    audit_versions,
    differences,
    list_resources,
    operation_to,
    restore_resource,
    show_history,
    show_resource,
)
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import TrimHorizon
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

    sums = {"versions": 3, "wrong": 0, "erased": 0, "problems": []}
    assert await ask(audit_versions(settings, *TENANT, None)) == sums
    assert await ask(audit_versions(settings, *TENANT, "treatment")) == sums | {"versions": 0}
    await execute(address.connection_string, "UPDATE resource_versions SET source_no = type_no WHERE version = 2")
    audited = await ask(audit_versions(settings, *TENANT, "patient"), 1)
    assert [(one["resourceId"], one["version"]) for one in audited["problems"]] == [("r1", 2)]

    found: list[tuple[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = await ask(list_resources(settings, PATIENT, row["applied_at"], 1, after))
        found += [(one["resourceId"], one["document"]) for one in page["resources"]]
        after = page["next"]
    assert found == [("r1", {"a": 1, "b": 2}), ("r2", {"c": 3}), ("old", {"a": 1})]


@pytest.mark.slow(0.5)
@pytest.mark.usefixtures("aws_credentials")
async def test_resource_is_restored_by_an_operation_on_the_stream(
    make_shard: ShardMaker, kinesis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", kinesis_url)
    address = await make_shard("a")
    pool = ShardPool(address, size=1)
    await add_tenant(pool)
    case = TenantCase(pool, TENANT)
    await keep_history(pool, "patient")
    await case.apply_each(case.operation("create", "r1", {"a": 1}), case.operation("update", "r1", {"a": 2}))
    async with client_of("kinesis", kinesis_url) as client:
        stream = Stream(client, f"stream-{uuid4()}")
        await stream.ensure(create=True, stream_shard_count=1)
        (shard,) = await stream.list_stream_shards()
        iterator = await stream.get_iterator(shard.stream_shard_id, TrimHorizon())
        settings = settings_of(tmp_path, address).model_copy(update={"kinesis_stream_name": stream.name})

        async def restore(version: int, *, apply: bool) -> Answer:
            return await restore_resource(settings, (*PATIENT, "r1"), None, version, is_apply=apply, as_json=True)

        async def apply_what_was_sent() -> None:
            sent: list[Any] = []

            async def has_come() -> bool:
                with contextlib.suppress(ThrottledError):  # a stream shard takes five calls a second
                    sent.extend((await stream.get_records(iterator, limit=100)).records)
                return bool(sent)

            assert await poll_until(has_come, within_s=60)
            record = json.loads(sent[0].data)
            assert record["timestamp"]
            await case.apply(case.operation("update", "r1", record["data"], request_id=record["requestId"]))

        plan = await restore(1, apply=False)
        assert plan.members["changes"] == [{"path": "/a", "before": 2, "after": 1}]
        assert [one.fate for one in plan.members["records"]] == ["applied"]
        done, _ = await asyncio.gather(restore(1, apply=True), apply_what_was_sent())
        assert [one.status for one in done.members["operations"]] == ["succeeded"]
        assert await case.resources() == {("patient", "r1"): {"a": 1}}
        assert (await restore(3, apply=True)).members == {"operations": []}
        with pytest.raises(PermanentError, match="there is no version 9"):
            await restore(9, apply=False)
    await pool.close()


def version_of(change: str, document: str | None) -> VersionView:
    raw = None if document is None else msgspec.Raw(document.encode())
    return VersionView("r1", 1, change, None, None, None, raw)


HERE, THERE, GONE = version_of("create", '{"a": 1}'), version_of("update", '{"a": 2}'), version_of("delete", None)


@pytest.mark.parametrize(
    ("now", "then", "expected"),
    [
        (HERE, THERE, ("update", {"a": 2})),
        (THERE, HERE, ("update", {"a": 1})),
        (GONE, HERE, ("create", {"a": 1})),
        (None, HERE, ("create", {"a": 1})),
        (HERE, GONE, ("delete", None)),
        (HERE, None, ("delete", None)),
        (HERE, version_of("patch", '{"a":1}'), None),
        (GONE, GONE, None),
        (None, None, None),
        (version_of("update", None), HERE, ("update", {"a": 1})),
    ],
)
def test_operation_that_makes_a_resource_what_it_was(now: Any, then: Any, expected: Any) -> None:
    found = operation_to(now, then)

    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found["operation"], json.loads(bytes(found["data"])) if "data" in found else None) == expected


def test_version_without_its_document_is_not_restored() -> None:
    with pytest.raises(PermanentError, match="erased, or too large to show"):
        operation_to(HERE, version_of("update", None))


def test_differences_name_members_by_their_paths() -> None:
    before, after = {"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"b": 1, "c": [2]}, "e": None}

    assert list(differences(before, after)) == [
        {"path": "/a/c", "before": [1], "after": [2]},
        {"path": "/d", "before": 1},
        {"path": "/e", "after": None},
    ]
