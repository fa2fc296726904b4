"""What consumers call: applying through a route, looking up operations and tenants, asking all shards at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from support.citrus.cases import RoutedShards, routed_shards, silent
from support.postgres.databases import ShardMaker, execute
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_worker.consumers.rejection_notes import RejectionNotes
from simplu_worker.errors import RetryableError
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Origin
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards import lookups
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.lookups import FoundOperation, LoggedOperation, RejectedRequest
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.words import Role
from simplu_worker.vocabulary import Absence, DeadLetterReason, Inability, Source

TENANT_ID = "-".join(TENANT)


@pytest.fixture
async def routed(routed: RoutedShards) -> RoutedShards:
    await add_tenant(routed.pool())
    routed.register(TENANT, "shard-1")
    return routed


def case_of(routed: RoutedShards) -> TenantCase:
    return TenantCase(routed.pool(), TENANT)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"status": 401}, Inability.CITRUS_REFUSES_KEY),
        ({"is_unreachable": True}, Inability.CITRUS_UNREACHABLE),
        ({}, Inability.SHARDS_UNREACHABLE),
    ],
)
async def test_gateway_knows_that_it_can_do_nothing_at_its_start(faults: dict[str, Any], reason: Inability) -> None:
    async with routed_shards([silent("shard-1"), silent("shard-2")]) as routed:
        for name, value in faults.items():
            setattr(routed.citrus.faults, name, value)
        assert routed.gateway.inability is None
        await routed.gateway.look_around()
        assert routed.gateway.inability is reason


async def test_gateway_forgets_the_route_when_the_shard_holds_the_tenant(routed: RoutedShards) -> None:
    case = case_of(routed)
    await routed.gateway.find(TENANT_ID)
    await add_tenant(routed.pool("shard-2"))
    await fetch(case.pool, "UPDATE tenants SET state = 'moved', moved_to = 'shard-2'")
    create = case.operation("create", data={"a": 1})

    assert await routed.gateway.apply("shard-1", [create]) == [HOLD]
    assert routed.gateway.cached_shard_id(TENANT_ID) is None
    assert await routed.gateway.find(TENANT_ID) == "shard-2"
    assert await routed.gateway.apply("shard-2", [create]) == [SUCCEEDED]
    assert await case.everything() == [[], []]


async def test_gateway_returns_an_operation_of_a_tenant(routed: RoutedShards) -> None:
    case = case_of(routed)
    create = case.operation("create", data='{"n": 12345678901234567890.10}')
    read, missing = case.operation("read"), case.operation("delete", "r2")
    await routed.gateway.find(TENANT_ID)
    await routed.gateway.apply("shard-1", [create, read, missing])

    found, silent_shards, _ = await routed.gateway.lookups.find_operation(read.request_id, TENANT_ID)
    assert found is not None
    shown = msgspec.to_builtins(found, builtin_types=(msgspec.Raw,))
    assert {name: shown[name] for name in ("requestId", "status", "operation", "resourceId", "shardId")} == {
        "requestId": read.request_id,
        "status": "succeeded",
        "operation": "read",
        "resourceId": "r1",
        "shardId": "shard-1",
    }
    assert b"12345678901234567890.10" in bytes(shown["result"])
    assert silent_shards == []
    failed, _, _ = await routed.gateway.lookups.find_operation(missing.request_id, TENANT_ID)
    assert isinstance(failed, LoggedOperation)
    assert (failed.status, failed.error, failed.result) == ("failed", "not_found", None)
    assert await routed.gateway.lookups.find_operation("unknown", TENANT_ID) == FoundOperation(None, [], [{}])
    assert await routed.gateway.lookups.find_operation(read.request_id, "unknown-tenant") == FoundOperation(
        Absence.UNREGISTERED
    )


async def test_gateway_finds_no_operation_of_another_pair_with_the_same_tenant_id(routed: RoutedShards) -> None:
    case = await add_registered(routed, ("a", "b-c"), "shard-1")
    assert await case.apply(case.operation("create", data={}, request_id="own")) == [SUCCEEDED]

    own, _, _ = await routed.gateway.lookups.find_operation("own", "a-b-c", names=("a", "b-c"))
    assert isinstance(own, LoggedOperation)
    other = await routed.gateway.lookups.find_operation("own", "a-b-c", names=("a-b", "c"))
    assert other == FoundOperation(Absence.UNREGISTERED)


async def test_gateway_tells_what_is_decided(make_shard: ShardMaker) -> None:
    shards = [await make_shard("shard-1"), await make_shard("shard-2")]
    async with routed_shards([*shards, silent("shard-4")]) as routed:
        for shard_id, business_id in (("shard-1", "b1"), ("shard-2", "b2"), ("shard-2", "gone")):
            case = await add_registered(routed, (business_id, "l"), shard_id)
            assert await case.apply(case.operation("create", data={}, request_id="own")) == [SUCCEEDED]
        routed.register(("b4", "l"), "shard-4")
        keys = [(f"{one}-l", one, request) for one in ("b1", "b2", "nobody", "gone", "\0") for request in ("own", "x")]

        async def decided() -> set[tuple[str, ...]]:
            answers = await asyncio.gather(*(routed.gateway.lookups.is_decided(*key) for key in keys))
            return {key for key, is_decided in zip(keys, answers, strict=True) if is_decided}

        assert await decided() == {(f"{one}-l", one, "own") for one in ("b1", "b2", "gone")}
        with pytest.raises(RetryableError):
            await routed.gateway.lookups.is_decided("b4-l", "b4", "own")
        await execute(shards[1].connection_string, "UPDATE tenants SET state = 'moved' WHERE business_id = 'gone'")
        await execute(
            shards[0].connection_string,
            "INSERT INTO rejections VALUES ('b1-l', 'x', 'r', 'e', 'q', 's', '1', NULL, now())",
        )
        assert await decided() == {("b1-l", "b1", "own"), ("b1-l", "b1", "x"), ("b2-l", "b2", "own")}
        with pytest.raises(RetryableError):  # its route is looked up again, and leads to no shard
            await routed.gateway.find("gone-l")


async def test_gateway_asks_all_shards_for_an_operation_when_the_tenant_is_not_given(make_shard: ShardMaker) -> None:
    shards = [await make_shard("shard-1"), await make_shard("shard-2"), await make_shard("shard-3", is_empty=True)]
    async with routed_shards([*shards, silent("shard-4")]) as routed:
        for shard_id, tenant in (("shard-2", ("b", "1")), ("shard-1", ("b", "2"))):
            pool = routed.pool(shard_id)
            await add_tenant(pool, tenant)
            case = TenantCase(pool, tenant)
            assert await case.apply(case.operation("create", data={}, request_id="same")) == [SUCCEEDED]

        found, silent_shards, _ = await routed.gateway.lookups.find_operation("same", None)

        assert isinstance(found, LoggedOperation)
        assert (found.shard_id, silent_shards) == ("shard-1", ["shard-4"])
        assert await routed.gateway.lookups.find_operation("unknown", None) == FoundOperation(
            None, ["shard-4"], [{}, {}]
        )


async def test_gateway_returns_the_present_row_of_a_resource(
    routed: RoutedShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(routed)
    await case.apply(case.operation("create", "r1", data={"n": 1}))
    found = await routed.gateway.lookups.find_resource(*TENANT, "patient", "r1")
    assert isinstance(found, tuple)
    shard_id, row = found
    assert (shard_id, row["is_there"], row["data"], row["size_bytes"]) == ("shard-1", True, '{"n": 1}', 8)
    assert row["last_updated"] >= row["date"]
    absent = await routed.gateway.lookups.find_resource(*TENANT, "patient", "other")
    assert isinstance(absent, tuple)
    assert set(absent[1].values()) == {False, None}
    monkeypatch.setattr(lookups, "RESOURCE_SHOWN_MAX_BYTES", 7)
    cut = await routed.gateway.lookups.find_resource(*TENANT, "patient", "r1")
    assert isinstance(cut, tuple)
    assert (cut[1]["data"], cut[1]["size_bytes"]) == (None, 8)
    assert await routed.gateway.lookups.find_resource("unknown", "tenant", "patient", "r1") is Absence.UNREGISTERED
    assert await routed.gateway.lookups.find_resource(*TENANT, "patient", "\0") is Absence.UNREGISTERED


WITHIN_S = 60.0


def letter(request_id: str, tenant: tuple[str, str] = TENANT, *, error: str = "expected an object") -> DeadLetter:
    now = datetime.now(UTC)
    return DeadLetter(
        reason=DeadLetterReason.INVALID_MESSAGE,
        error=error,
        origin=Origin(Source.KINESIS, "operations", now, stream_shard_id="shardId-0", sequence_number="7"),
        failed_at=now,
        attempts=1,
        record=b"{}",
        request_id=request_id,
        business_id=tenant[0],
        location_id=tenant[1],
    )


class Letters:
    def __init__(self) -> None:
        self.request_ids: list[str | None] = []

    async def store(self, letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        self.request_ids += [letter.request_id for letter in letters]


@asynccontextmanager
async def open_notes(routed: RoutedShards, letters: Letters) -> AsyncIterator[RejectionNotes]:
    notes = RejectionNotes(letters, "letters", routed.gateway)
    writing = asyncio.create_task(notes.run())
    yield notes
    writing.cancel()
    await asyncio.wait([writing])


async def store(notes: RejectionNotes, *letters: DeadLetter) -> None:
    await notes.store(letters, stopping=asyncio.Event())
    await notes.flush(WITHIN_S)


@pytest.mark.slow
async def test_rejected_record_is_found_by_its_request_id(make_shard: ShardMaker) -> None:
    shards = [await make_shard("shard-1"), await make_shard("shard-2"), await make_shard("shard-3", is_empty=True)]
    async with routed_shards([*shards, silent("shard-4")]) as routed, open_notes(routed, Letters()) as notes:
        case = await add_registered(routed, TENANT, "shard-1")
        await add_registered(routed, ("hotel", "sea"), "shard-2")
        await store(notes, letter("r-1", error="first"), letter("r-1", error="last"))
        await store(notes, letter("r-1", ("hotel", "sea")), letter("r-2", ("nobody", "nowhere")))
        found = await routed.gateway.lookups.find_rejection("r-1", TENANT_ID)
        of_any = await routed.gateway.lookups.find_rejection("r-1", None)

        assert isinstance(found, RejectedRequest)
        assert isinstance(of_any, RejectedRequest)
        assert of_any.shard_id == "shard-2"
        assert msgspec.to_builtins(found, builtin_types=(datetime,)) == {
            "requestId": "r-1",
            "status": "rejected",
            "reason": "invalid_message",
            "error": "last",
            "deadLetterQueue": "letters",
            "source": "operations",
            "sequenceNumber": "7",
            "rejectedAt": found.rejected_at,
            "shardId": "shard-1",
        }
        unplaced = await routed.gateway.lookups.find_rejection("r-2", "nobody-nowhere")
        assert isinstance(unplaced, RejectedRequest)
        assert (unplaced.shard_id, unplaced.error) == ("shard-1", "expected an object")
        assert await routed.gateway.lookups.find_rejection("r-2", None) == unplaced
        assert await routed.gateway.lookups.find_rejection("r-3", "nobody-nowhere") is Absence.UNREGISTERED
        assert await routed.gateway.lookups.find_rejection("r-1", "\0") is None
        assert await routed.gateway.lookups.find_rejection("\0", None) is None
        assert await case.apply(case.operation("create", data={}, request_id="r-1")) == [SUCCEEDED]
        applied, _, _ = await routed.gateway.lookups.find_operation("r-1", TENANT_ID)
        assert applied is not None


@pytest.mark.slow
async def test_rejection_is_told_to_its_own_pair_of_ids_alone(make_shard: ShardMaker) -> None:
    async with routed_shards([await make_shard("shard-1")]) as routed, open_notes(routed, Letters()) as notes:
        await add_registered(routed, ("a", "b-c"), "shard-1")
        pairs = (("a", "b-c"), ("a-b", "c"))
        await store(notes, *(letter("r-1", pair, error=pair[0]) for pair in pairs), letter("r-2", pairs[0]))

        for pair in pairs:
            found = await routed.gateway.lookups.find_rejection("r-1", "a-b-c", names=pair)
            assert isinstance(found, RejectedRequest)
            assert found.error == pair[0]
        assert await routed.gateway.lookups.find_rejection("r-2", "a-b-c", names=pairs[1]) is Absence.UNREGISTERED
        assert await routed.gateway.lookups.is_decided("a-b-c", "a", "r-2")
        assert not await routed.gateway.lookups.is_decided("a-b-c", "a-b", "r-2")


@pytest.mark.slow
async def test_message_without_a_tenant_is_found_by_its_message_id(make_shard: ShardMaker) -> None:
    origin = Origin(Source.SQS, "orders", datetime.now(UTC), message_id="m-1")
    nameless = msgspec.structs.replace(letter("d-1"), origin=origin, business_id=None, location_id=None)
    shards = [silent("shard-1"), await make_shard("shard-2"), await make_shard("shard-3")]
    async with routed_shards(shards) as routed, open_notes(routed, Letters()) as notes:
        await store(notes, nameless)

        found = await routed.gateway.lookups.find_rejection("m-1", None)
        assert isinstance(found, RejectedRequest)
        assert (found.shard_id, found.message_id, found.source) == ("shard-2", "m-1", "orders")
        assert await routed.gateway.lookups.find_rejection("d-1", None) is None


@pytest.mark.slow
@pytest.mark.parametrize("is_registered", [True, False])
async def test_refused_control_message_is_told_with_its_tenant(make_shard: ShardMaker, *, is_registered: bool) -> None:
    origin = Origin(Source.SQS, "control", datetime.now(UTC), message_id="m-1")
    refused = msgspec.structs.replace(letter("-", error="no such type"), origin=origin, request_id=None)
    async with routed_shards([await make_shard("shard-1")]) as routed, open_notes(routed, Letters()) as notes:
        if is_registered:
            await add_registered(routed, TENANT, "shard-1")
        replica = ReplicaStatus("replica-1", asyncio.Event())
        replica.start(routed.gateway, routed.pools, routed.locator)
        before = await replica.started.find_tenant(*TENANT, Role.OPERATOR)
        await store(notes, msgspec.structs.replace(refused, error="first"), refused)
        status, after = await replica.started.find_tenant(*TENANT, Role.OPERATOR)
        other = (TENANT[0] + "-" + TENANT[1][:1], TENANT[1][1:])
        _, of_other = await replica.started.find_tenant(*other, Role.OPERATOR)

    assert status == (200 if is_registered else 404)
    assert before[1]["refused"] is None
    told = after["refused"]
    assert (told["reason"], told["error"], told["messageId"], told["queue"]) == (
        "invalid_message",
        "no such type",
        "m-1",
        "control",
    )
    assert of_other["refused"] is None


async def add_registered(routed: RoutedShards, tenant: tuple[str, str], shard_id: str) -> TenantCase:
    routed.register(tenant, shard_id)
    await add_tenant(routed.pool(shard_id), tenant)
    return TenantCase(routed.pool(shard_id), tenant)
