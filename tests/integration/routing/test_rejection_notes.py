"""Rejected records are noted on the shard of their tenant, beside their dead letters, and delay nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import msgspec
import pytest
from support.citrus.cases import RoutedShards, routed_shards, silent
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant

from simplu_worker.consumers.rejection_notes import RejectionNotes
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Origin
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.lookups import RejectedRequest
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.words import Role
from simplu_worker.vocabulary import Absence, DeadLetterReason, Source

pytestmark = pytest.mark.slow


TENANT_ID = "-".join(TENANT)
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
    (address,) = [one for one in await routed.locator.list_shards() if one.shard_id == shard_id]
    pool = routed.pools.ensure_pool(address)
    await add_tenant(pool, tenant)
    return TenantCase(pool, tenant)
