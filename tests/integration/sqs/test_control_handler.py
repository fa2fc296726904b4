from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast

import asyncpg
import msgspec
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TenantCase, fetch

from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.control_handler import ControlHandler
from simplu_worker.consumers.sqs.receive.verdicts import Done, RetryHeld, ReturnToQueue, ToDeadLetter, Verdict
from simplu_worker.errors import RetryableError
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.tenants.deletion import Destroyer, TenantDeleter
from simplu_worker.shards.tenants.provisioning import Provisioner
from simplu_worker.shards.tenants.resource_changes import ResourceChanges
from simplu_worker.shards.types import (
    AdminAccount,
    ChangeResult,
    CitrusDeniedError,
    DestructionResult,
    ProvisionAnswer,
    ProvisionRequest,
    ProvisionResult,
    ResourceRename,
    ShardNotAllowedError,
    UnknownBusinessTypeError,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAIT = timedelta(seconds=900)
TYPES = {
    "create": "SHARD_CREATION",
    "destroy": "SHARD_DESTRUCTION",
    "destroy_all": "SHARD_DESTRUCTION",
    "rename": "UPDATE_RESOURCE_ID",
    "admin": "ADMIN_ACCOUNT_CREATION",
}
OUTAGE = RetryableError("the shard is down")
UNKNOWN_TYPE = UnknownBusinessTypeError("spa", shard_id="s1", known=["dental", "gym"])

T = TypeVar("T")

_numbers = itertools.count(1)


def message(
    what: str,
    location: str = "1",
    *,
    minute: int = 0,
    group: str | None = None,
    age: timedelta = timedelta(),
    tries: int = 1,
    **members: Any,
) -> Message:
    body = {
        "businessId": "b",
        "locationId": location,
        "businessType": "dental",
        "timestamp": f"2026-03-01T10:{minute:02}:00Z",
        "action": what,
        "resourceType": "patient",
        "oldResourceId": "old",
        "newResourceId": "new",
        "adminEmail": "ann@clinic.example",
        "adminUserId": "u-1",
    }
    return Message(
        message_id=f"m{next(_numbers)}",
        receipt_handle="r",
        body=json.dumps(body | members),
        attributes={"MessageType": TYPES.get(what, what)},
        sent_at=NOW - age,
        receive_count=tries,
        group_id=group,
    )


class Desk:
    def __init__(self) -> None:
        self.script: dict[tuple[str, str], deque[Any]] = {}
        self.asked: list[str] = []
        self.batches: list[int] = []

    def script_answers(self, call: str, location: str, *answers: object) -> None:
        self.script.setdefault((call, location), deque()).extend(answers)

    async def provision_all(self, requests: Sequence[ProvisionRequest]) -> list[ProvisionAnswer]:
        self.batches.append(len(requests))
        return [self._answer("create", request.location_id, ProvisionResult.PROVISIONED) for request in requests]

    async def destroy(self, business_id: str, location_id: str, requested_at: datetime) -> DestructionResult:
        return await self._call("destroy", location_id, DestructionResult.DESTROYING)

    async def destroy_all(self, business_id: str, requested_at: datetime) -> Mapping[str, DestructionResult]:
        return await self._call("destroy_all", "", {"1": DestructionResult.DESTROYING})

    async def rename(self, rename: ResourceRename) -> ChangeResult:
        return await self._call("rename", rename.location_id, ChangeResult.APPLIED)

    async def add_admin(self, admin: AdminAccount) -> ChangeResult:
        return await self._call("admin", admin.location_id, ChangeResult.APPLIED)

    async def _call(self, call: str, location: str, well: T) -> T:
        await asyncio.sleep(0)
        answer = self._answer(call, location, well)
        if isinstance(answer, Exception):
            raise answer
        return cast("T", answer)

    def _answer(self, call: str, location: str, well: Any) -> Any:
        self.asked.append(f"{call} {location}".strip())
        script = self.script.get((call, location))
        return script.popleft() if script else well


def handler(desk: Any = None, *, fifo: bool = False, routed: RoutedShards | None = None) -> ControlHandler:
    return ControlHandler(
        routed.provisioner if routed else desk,
        routed.destroyer if routed else desk,
        routed.changes if routed else desk,
        Queue(None, "http://sqs/000/control" + (".fifo" if fifo else "")),
        retries=RetryRules((1, 5), WAIT),
        draw=lambda: 0.0,
        clock=lambda: NOW,
    )


def kinds(verdicts: Sequence[Verdict]) -> list[type]:
    return [type(verdict) for verdict in verdicts]


# Results


@pytest.mark.parametrize(
    ("what", "results"),
    [
        ("create", [ProvisionResult.PROVISIONED, ProvisionResult.EXISTED, ProvisionResult.RESTORED]),
        ("destroy", [DestructionResult.DESTROYING, DestructionResult.EXISTED]),
        ("rename", [ChangeResult.APPLIED, ChangeResult.EXISTED, ChangeResult.TENANT_DESTROYED]),
        ("admin", [ChangeResult.APPLIED, ChangeResult.EXISTED, ChangeResult.TENANT_DESTROYED]),
    ],
)
async def test_message_is_done_when_it_is_applied(what: str, results: list[Any]) -> None:
    desk = Desk()
    desk.script_answers(what, "1", *results)
    with capture_logs() as logs:
        verdicts = [(await handler(desk).handle([message(what)]))[0] for _ in results]
    assert verdicts == [Done()] * len(results)
    facts = [(entry["event"], entry["type"], entry["location_id"], entry["result"]) for entry in logs]
    assert facts == [("control.applied", TYPES[what], "1", result) for result in results]


@pytest.mark.parametrize(
    ("results", "event"),
    [
        ({"1": DestructionResult.STALE, "2": DestructionResult.DESTROYING}, "control.applied"),
        ({"1": DestructionResult.STALE, "2": DestructionResult.EXISTED}, "control.applied"),
        ({"1": DestructionResult.STALE}, "control.stale"),
        ({}, "control.deferred"),
    ],
)
async def test_destruction_of_a_business_is_what_its_locations_come_to(
    results: dict[str, DestructionResult], event: str
) -> None:
    desk = Desk()
    desk.script_answers("destroy_all", "", results)
    with capture_logs() as logs:
        (verdict,) = await handler(desk).handle([message("destroy_all")])
    assert isinstance(verdict, RetryHeld if event == "control.deferred" else Done)
    assert logs[-1]["event"] == event


@pytest.mark.parametrize("what", list(TYPES))
async def test_outage_holds_a_message_and_never_makes_a_dead_letter(what: str) -> None:
    desk = Desk()
    waits = []
    with capture_logs() as logs:
        for tries in (1, 3, 50):
            desk.script_answers(what, "" if what == "destroy_all" else "1", OUTAGE)
            (verdict,) = await handler(desk).handle([message(what, tries=tries, age=WAIT * 1000)])
            waits.append(verdict)
    assert waits == [RetryHeld(0.5), RetryHeld(2.0), RetryHeld(30.0)]
    assert [(entry["event"], entry["error"]) for entry in logs] == [("control.deferred", "the shard is down")] * 3


def retry_count(reason: str) -> float:
    return REGISTRY.get_sample_value("simplu_retries_total", {"source": "sqs", "reason": reason}) or 0


@pytest.mark.parametrize("error", [ShardNotAllowedError("not allowed"), CitrusDeniedError("401")])
async def test_trouble_that_only_a_person_can_mend_is_loud(error: Exception) -> None:
    desk, counted = Desk(), retry_count("blocked")
    desk.script_answers("create", "1", error)
    with capture_logs() as logs:
        assert kinds(await handler(desk).handle([message("create")])) == [RetryHeld]
    assert [(entry["event"], entry["log_level"], entry["error"]) for entry in logs] == [
        ("control.blocked", "error", str(error))
    ]
    assert retry_count("blocked") == counted + 1


@pytest.mark.parametrize("what", list(TYPES))
async def test_unforeseen_error_without_a_shard_gives_nothing_up(what: str) -> None:
    desk = Desk()
    desk.script_answers(what, "" if what == "destroy_all" else "1", *(KeyError("secret") for _ in range(20)))
    handled = handler(desk)
    with capture_logs():
        verdicts = [(await handled.handle([message(what, tries=tries)]))[0] for tries in range(1, 21)]
    assert verdicts[:3] == [RetryHeld(0.5), RetryHeld(1.0), RetryHeld(2.0)]
    assert verdicts[-1] == RetryHeld(30.0)
    assert await handled.handle([message(what)]) == [Done()]


# Waiting for tenants and resources


@pytest.mark.parametrize(
    ("what", "absent", "reason"),
    [
        ("destroy", DestructionResult.UNKNOWN, "unknown_tenant"),
        ("destroy_all", {}, "unknown_tenant"),
        ("admin", ChangeResult.UNKNOWN_TENANT, "unknown_tenant"),
        ("rename", ChangeResult.UNKNOWN_TENANT, "unknown_tenant"),
        ("rename", ChangeResult.MISSING, "retries_exhausted"),
        ("create", UNKNOWN_TYPE, "invalid_message"),
        ("admin", UNKNOWN_TYPE, "invalid_message"),
    ],
)
async def test_message_waits_for_what_is_not_there_then_is_given_up(what: str, absent: Any, reason: str) -> None:
    desk = Desk()
    ages = [timedelta(), WAIT - timedelta(seconds=3), WAIT - timedelta(seconds=0.1), WAIT]
    verdicts = []
    for age in ages:
        desk.script_answers(what, "" if what == "destroy_all" else "1", absent)
        verdicts += await handler(desk).handle([message(what, age=age, tries=20)])
    assert verdicts[:3] == [RetryHeld(30.0), RetryHeld(3.0), RetryHeld(1.0)]
    assert isinstance(verdicts[3], ToDeadLetter)
    assert (verdicts[3].reason, verdicts[3].ids.business_id) == (reason, "b")
    assert "within 900 s (TENANT_WAIT_SECONDS)" in verdicts[3].error
    if absent is UNKNOWN_TYPE:
        assert "expected one of dental, gym, which shard s1 has, got 'spa'" in verdicts[3].error


# Order


async def test_messages_about_one_tenant_keep_their_order() -> None:
    desk = Desk()
    sent = ["create 1", "create 2", "destroy 1", "admin 2", "create 3", "create 1", "destroy_all", "create 2"]
    assert await handler(desk).handle([message(*one.split()) for one in sent]) == [Done()] * 8
    assert desk.batches == [3, 1, 1]
    carried_out = "create 1, create 2, create 3, destroy 1, admin 2, create 1, destroy_all, create 2"
    assert desk.asked == carried_out.split(", ")


async def test_message_behind_one_that_waits_is_not_applied() -> None:
    desk = Desk()
    desk.script_answers("create", "1", OUTAGE)
    desk.script_answers("admin", "2", KeyError("x"))
    sent = ["create 1", "admin 1", "admin 2", "rename 2", "admin 3", "destroy_all", "create 4"]
    verdicts = await handler(desk).handle([message(*one.split()) for one in sent])
    assert verdicts == [*[RetryHeld(0.5)] * 4, Done(), *[RetryHeld(0.5)] * 2]
    assert desk.asked == ["create 1", "admin 2", "admin 3"]


async def test_later_ones_of_an_undecided_group_go_back() -> None:
    desk = Desk()
    desk.script_answers("create", "1", OUTAGE)
    batch = [
        message("create", "1", group="g"),
        message("create", "2", group="g"),
        message("NO_TYPE", group="g"),
        message("admin", "1", group="h"),
        message("create", "3", group="h"),
        message("create", "4", group="i"),
    ]
    verdicts = await handler(desk, fifo=True).handle(batch)
    assert verdicts == [RetryHeld(0.5), ReturnToQueue(0), ReturnToQueue(0), RetryHeld(0.5), ReturnToQueue(0), Done()]
    assert desk.asked == ["create 1", "create 4"]


# Real shards


@pytest.mark.slow
async def test_life_of_a_tenant_from_creation_to_destruction_and_back(make_shard: ShardMaker) -> None:
    address = await make_shard("shard-1", is_empty=True)
    async with routed_shards([address]) as routed:
        control = handler(routed=routed)
        life = [
            message("create", minute=1),
            message("admin", minute=2),
            message("rename", minute=3, resourceType="role", oldResourceId="u-1", newResourceId="u-2"),
            message("create", "2", minute=3),
            message("destroy", minute=4),
            message("create", minute=5),
            message("destroy", minute=4),
        ]
        case = TenantCase(routed.pools.ensure_pool(address), ("b", "1"))
        assert await control.handle(life) == [Done()] * len(life)
        assert set(await case.resources()) == {("settings", "default"), ("medic", "u-1"), ("role", "u-2")}
        assert await states(case) == {"b-1": "active", "b-2": "active"}

        # The rename finds both ids now, for the administrator's role was made again: that is for a person to decide.
        assert kinds(await control.handle(life)) == [Done, Done, ToDeadLetter, Done, Done, Done, Done]
        assert await states(case) == {"b-1": "active", "b-2": "active"}

        everything = [message("destroy_all", minute=6), message("admin", minute=7)]
        assert await control.handle(everything) == [Done(), Done()]
        assert await states(case) == {"b-1": "destroying", "b-2": "destroying"}
        assert await TenantDeleter(routed.pools, timedelta()).delete_due() == 2
        assert await control.handle([message("create", minute=6), message("create", "2", minute=8)]) == [Done()] * 2
        assert await states(case) == {"b-1": "destroyed", "b-2": "active"}
        assert await fetch(case.pool, "SELECT * FROM operations") == []


async def test_bug_on_a_known_shard_is_counted_and_given_up(make_shard: ShardMaker) -> None:
    def bug(_: object) -> None:
        raise ZeroDivisionError("a secret")

    class BuggyWaiter(ReplicationWaiter):
        async def wait_for_transaction(self, shard_id: str, server: Server, *, within_s: float | None = None) -> None:
            raise ZeroDivisionError("a secret")

    address = await make_shard("shard-1")
    async with routed_shards([address]) as routed:
        assert await handler(routed=routed).handle([message("create")]) == [Done()]
        buggy = replace(
            routed,
            provisioner=Provisioner(routed.locator, routed.directory, routed.pools, on_change=bug),
            destroyer=Destroyer(routed.locator, routed.directory, routed.pools, commits=BuggyWaiter(routed.pools)),
            changes=ResourceChanges(routed.directory, routed.pools, on_change=bug),
        )
        for what in ("create", "admin", "destroy", "destroy_all"):
            failing = message(what, minute=1)
            verdicts, control = [], handler(routed=buggy)
            for tries in (7, 8, 9):
                again = msgspec.structs.replace(failing, receive_count=tries)
                with capture_logs():
                    verdicts += await control.handle([again])
            assert verdicts[:2] == [RetryHeld(1), RetryHeld(5)]
            assert isinstance(verdicts[2], ToDeadLetter)
            assert (verdicts[2].error, verdicts[2].attempts) == ("it failed 3 times: ZeroDivisionError", 3)


@pytest.mark.slow(2)
@pytest.mark.parametrize("what", list(TYPES))
async def test_message_of_a_locked_tenant_waits_alone(make_shard: ShardMaker, what: str) -> None:
    address = await make_shard("shard-1")
    async with routed_shards([address]) as routed:
        control = handler(routed=routed)
        locations = ["locked", *(f"other-{number}" for number in range(20))]
        await control.handle([message("create", location) for location in locations])
        rival = await asyncpg.connect(address.connection_string)
        await rival.execute("BEGIN")
        await rival.execute("SELECT FROM tenants WHERE location_id = 'locked' FOR UPDATE")
        messages = [message(what, "locked", minute=1)]
        if what != "destroy_all":
            messages += [message("create", location, minute=1) for location in locations[1:]]
        with capture_logs():
            for _ in range(4):
                found = await control.handle(messages)
                assert kinds(found) == [RetryHeld, *[Done] * (len(messages) - 1)]

        await rival.close()
        assert kinds(await control.handle(messages[:1])) != [ToDeadLetter]


async def states(case: TenantCase) -> dict[str, str]:
    return {row["id"]: row["state"] for row in await fetch(case.pool, "SELECT id, state FROM tenants")}
