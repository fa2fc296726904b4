"""Bad input at once and in numbers: each record gets what the contract says, and nothing behind it waits for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from support.full_stack import Chain, FullStack, make_item, make_record, partition_key, poll_until_true

from simplu_local.workload.workload import Tenant

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow(6)]
PROMPT_S = 8.0  # from arrival to commit, behind bad input: far less than anything waits for, on a busy machine too
LARGE_READ_S = 5.1  # 10 MiB at the 2 MiB/s that Kinesis gives: quotas of GetRecords
SETTLED_S = 30.0

large_bodies = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # ours


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def full_stack() -> AsyncIterator[FullStack]:
    """Give the stack and the worker of this module; moto takes records over 1 MB without a pause behind them."""
    async with FullStack(aws="moto") as opened:
        yield opened


SQL = "'; DROP TABLE operations; --"
IDS = (SQL, '"double"', "../../etc/passwd", "a/b\\c", "%00%2e", "$1 {0} %s", "\u202e\u2028😀", " ", "NULL", "-", "é")


def bad_records(tenant: Tenant, run: str) -> dict[str, tuple[bytes, str]]:
    """Return records that are no operation, by name, each with the reason its dead letter must give."""

    def spoilt(**members: Any) -> bytes:
        return json.dumps(make_record(tenant, "create", f"bad-{run}", resourceId="bad", data={}) | members).encode()

    def without(name: str) -> bytes:
        record = make_record(tenant, "update", f"bad-{run}", resourceId="bad", data={})
        del record[name]
        return json.dumps(record).encode()

    half_deep = b'{"a":' * 10_000 + b"1" + b"}" * 9_999
    required = ("operation", "businessId", "locationId", "resourceType", "resourceId", "timestamp", "data")
    names = ("businessId", "locationId", "resourceType", "resourceId", "requestId")
    return {
        "empty": (b"", "invalid_json"),
        "not JSON": (b"not JSON", "invalid_json"),
        "not UTF-8": (b'{"operation": "\xff\xfe"}', "invalid_json"),
        "half": (spoilt()[:-1], "invalid_json"),
        "deep and half": (spoilt(data=0).replace(b'"data": 0', b'"data": ' + half_deep), "invalid_json"),
        "deep outside": (b"[" * 10_000 + b"]" * 10_000, "invalid_message"),
        "a list": (b"[]", "invalid_message"),
        "unknown operation": (spoilt(operation="upsert"), "invalid_message"),
        "an old time": (spoilt(timestamp="0000-01-01"), "invalid_message"),
        **{f"no {name}": (without(name), "invalid_message") for name in required},
        **{f"{name} a number": (spoilt(**{name: 7}), "invalid_message") for name in (*names, "data", "timestamp")},
        **{f"{name} with U+0000": (spoilt(**{name: "a\0b"}), "invalid_message") for name in names},
        **{f"{name} a lone surrogate": (spoilt(**{name: "a\ud800b"}), "invalid_message") for name in names},
        **{f"{name} too long": (spoilt(**{name: "x" * 257}), "invalid_message") for name in names},
    }  # fmt: skip


async def test_worker_buries_bad_records_and_delays_nothing_behind_them(full_stack: FullStack) -> None:
    """Each bad record becomes a dead letter with its reason; the good one behind each is committed within 2 s."""
    tenant, good = full_stack.steady[0], Chain(full_stack.steady[0])
    bad = bad_records(tenant, good.resource_id)
    items, expected = [], {}
    for number, (name, (record, reason)) in enumerate(bad.items()):
        key = partition_key(number % 2)
        item = make_item(key, record or b" ")
        items.append(item)
        expected[item.record] = reason
        follower = f"behind {name} {good.resource_id}"
        items.append(make_item(key, make_record(tenant, "create", follower, resourceId=follower, data={"n": 1})))
    names = [f"behind {name} {good.resource_id}" for name in bad]
    positions = await full_stack.put(*items)
    rejected = dict(zip(positions, items, strict=True))
    log = await full_stack.wait_for_rows(tenant, names, within_s=SETTLED_S)
    assert {log[name]["status"] for name in names} == {"succeeded"}
    assert [(name, log[name]["latency_s"]) for name in names if log[name]["latency_s"] > PROMPT_S] == []
    letters = await full_stack.wait_for_dead_letters(positions[::2], within_s=SETTLED_S)
    got = {rejected[position].record: letter.reason for position, letter in letters.items()}
    assert got == expected


async def test_worker_serves_others_promptly_while_a_hundred_tenants_are_unknown(full_stack: FullStack) -> None:
    """Operations of unknown tenants wait; those of known and of new tenants behind them do not; then all is applied."""
    unknown = [full_stack.new_tenant() for _ in range(99)]
    waiting = [Chain(tenant) for tenant in unknown]
    prompt = [Chain(tenant) for tenant in (*full_stack.steady, *await full_stack.take_fresh_tenants())]
    await full_stack.put(*(item for chain in waiting for item in chain.next_items(1)), *prompt)
    await full_stack.wait_until_applied(*prompt, within_s=SETTLED_S)
    rows = {name: row for chain in prompt for name, row in (await full_stack.read_operations(chain.tenant)).items()}
    slowest = {chain.resource_id: max(rows[name]["latency_s"] for name in chain.expected) for chain in prompt}
    assert {name: latency_s for name, latency_s in slowest.items() if latency_s > PROMPT_S} == {}
    assert await poll_until_true(
        lambda: full_stack.read_metric("simplu_held_targets", reason="unregistered"), within_s=PROMPT_S
    )
    await full_stack.register(unknown)
    await full_stack.wait_until_applied(*waiting, within_s=SETTLED_S)
