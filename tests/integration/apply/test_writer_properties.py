from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.postgres.tenant_cases import NO_CHECKS, TenantCase, add_tenant, fetch, in_batches, operation, writer_of

from simplu_local.workload.json_values import canonical_text, parse_json
from simplu_local.workload.reference_model import Effect, OperationRequest, ReferenceModel, Verdict, merge_patch
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.shards.apply.write_attempt import DUPLICATE, REUSED, SUCCEEDED
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.vocabulary import Failure

_example_numbers = itertools.count(1)


VALUES = st.sampled_from(["1", "1.0", "10e-1", "2", "null", "true", '"x"', '"1"', "[]", "[1]", "{}", '{"n": 1}'])
BAD_VALUES = st.sampled_from(['"\\u0000"', "1e200000"])
MEMBERS = st.sampled_from(["a", "b", "c"])
DAYS = st.sampled_from(["2026-02-28", "2026-03-01", "2026-03-02"])
TIMES = st.sampled_from(
    ["2026-02-28T23:59:59.999999Z", "2026-03-01", "2026-03-01T23:30:00-01:00", "2026-03-02T00:30:00+01:00"]
)


def objects(values: st.SearchStrategy[str], *, min_size: int = 0) -> st.SearchStrategy[str]:
    members = st.dictionaries(MEMBERS, values, min_size=min_size, max_size=3)
    return members.map(lambda pairs: "{" + ", ".join(f'"{name}": {value}' for name, value in pairs.items()) + "}")


DOCUMENTS = objects(VALUES)
PATCHES = objects(st.one_of(VALUES, objects(VALUES)))
FILTERS = st.builds(
    lambda members, days: json.dumps(json.loads(members) | days) if days else members,
    objects(VALUES.map(lambda value: f'{{"equals": {value}}}' if value.startswith("{") else value)),
    st.dictionaries(st.sampled_from(["date", "startDate", "endDate"]), DAYS, max_size=2),
)
PAGES = st.builds(lambda page, limit: json.dumps({"page": page, "limit": limit}), st.integers(1, 3), st.integers(1, 3))


@st.composite
def requests(draw: st.DrawFn) -> OperationRequest:
    """Return any operation on a handful of resources, now and then under a request id that others use as well."""
    kind = draw(st.sampled_from(["create"] * 3 + ["update", "patch", "patch", "delete", "read", "list", "list"]))
    data = filters = pagination = None
    if kind in {"create", "update", "patch"}:
        good = PATCHES if kind == "patch" else DOCUMENTS
        data = draw(good if draw(st.integers(0, 15)) else objects(BAD_VALUES, min_size=1))
    if kind == "list":
        filters, pagination = draw(st.none() | FILTERS), draw(st.none() | PAGES)
    return OperationRequest(
        kind=kind,
        business_id="",
        location_id=draw(st.sampled_from(["north", "south"])),
        resource_type=draw(st.sampled_from(["patient", "visit"])),
        resource_id=None if kind == "list" else draw(st.sampled_from(["r1", "r2", "r10"])),
        timestamp=datetime.fromisoformat("2026-03-01T12:00:00+00:00"),
        request_id=draw(st.none() | st.sampled_from(["twice", "thrice"])),
        data=data,
        filters=filters,
        pagination=pagination,
    )


class Example:
    def __init__(self, pool: ShardPool) -> None:
        self.pool = pool
        self.business_id = f"example-{next(_example_numbers)}"
        self.model = ReferenceModel(list_result_limit=2)
        self.tenants = [TenantCase(pool, (self.business_id, location)) for location in ("north", "south")]

    async def prepare(self, drawn: Sequence[tuple[OperationRequest, str]]) -> list[tuple[OperationRequest, Operation]]:
        for tenant in self.tenants:
            await add_tenant(self.pool, tenant.ids)
            self.model.add_tenant(*tenant.ids, "dental")
        return [self._owned(request, time, number) for number, (request, time) in enumerate(drawn)]

    def _owned(self, request: OperationRequest, time: str, number: int) -> tuple[OperationRequest, Operation]:
        sent = operation(
            request.kind,
            request.resource_id,
            request.data,
            tenant=(self.business_id, request.location_id),
            resource_type=request.resource_type,
            request_id=request.request_id or f"own-{number}",
            timestamp=time,
            filters=request.filters,
            pagination=request.pagination,
            list_limit=2,
        )
        timestamp = datetime.fromisoformat(sent.requested_at)
        meant = replace(request, business_id=self.business_id, request_id=sent.request_id, timestamp=timestamp)
        return meant, sent

    def expected(self, request: OperationRequest) -> Outcome:
        match self.model.apply(request):
            case Verdict(Effect.LOGGED):
                entry = self.model.tenants[request.tenant_id].log[str(request.request_id)]
                return Outcome(disposition=Disposition.APPLIED, failure=Failure(entry.error) if entry.error else None)
            case Verdict(Effect.DROPPED):
                return DUPLICATE
            case _:
                return REUSED

    async def compare(self) -> None:
        for tenant in self.tenants:
            model = self.model.tenants[tenant.tenant_id]
            rows = await fetch(
                self.pool,
                'SELECT "resourceName", "resourceId", data::text, date, "lastUpdated" FROM resources WHERE id = $1',
                tenant.tenant_id,
            )
            assert {
                (row["resourceName"], row["resourceId"]): (
                    canonical_text(parse_json(row["data"])),
                    row["date"],
                    row["lastUpdated"],
                )
                for row in rows
            } == {key: (canonical_text(row.data), row.date, row.last_updated) for key, row in model.rows.items()}
            log = await fetch(
                self.pool,
                "SELECT request_id, operation, error, result::text, requested_at FROM operations WHERE tenant_id = $1",
                tenant.tenant_id,
            )
            assert {
                row["request_id"]: (row["operation"], row["error"], comparable(row["result"]), row["requested_at"])
                for row in log
            } == {
                request_id: (entry.kind, entry.error, comparable(entry.result), entry.requested_at)
                for request_id, entry in model.log.items()
            }


def comparable(result: Any) -> str | None:
    if result is None:
        return None
    parsed = parse_json(result) if isinstance(result, str) else result
    assert isinstance(parsed, dict)
    assert (parsed.pop("next", None) is None) or parsed["hasMore"]
    items = parsed.get("items", [parsed])
    assert isinstance(items, list)
    for item in items:
        assert isinstance(item, dict)
        for name in ("date", "lastUpdated"):
            item[name] = datetime.fromisoformat(str(item[name])).isoformat()
    return canonical_text(parsed)


DRAWN = st.lists(st.tuples(requests(), TIMES), min_size=1, max_size=25)
SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=4)
CAREFUL = st.sampled_from([0, 1, 16])  # batches in the form with ON CONFLICT behind one with a duplicate


@settings(max_examples=50, suppress_health_check=NO_CHECKS)
@given(drawn=DRAWN, sizes=SIZES, careful=CAREFUL)
async def test_writer_equals_the_model_whatever_the_batches(
    tenant: TenantCase, drawn: list[tuple[OperationRequest, str]], sizes: list[int], careful: int
) -> None:
    """Outcomes, rows, dates, log and results are those of the model, wherever the batches were cut.

    Whether rows are inserted plainly first, or with ON CONFLICT, makes no difference.
    """
    example = Example(tenant.pool)
    both = await example.prepare(drawn)
    expected = [example.expected(request) for request, _ in both]
    writer = writer_of(tenant.pool, careful_count=careful)

    outcomes = [
        outcome for batch in in_batches([sent for _, sent in both], sizes) for outcome in await writer.apply(batch)
    ]

    assert outcomes == expected
    await example.compare()


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=NO_CHECKS)
@given(drawn=DRAWN, sizes=SIZES, others=SIZES, careful=CAREFUL)
async def test_operations_of_two_readers_are_applied_once(
    tenant: TenantCase, drawn: list[tuple[OperationRequest, str]], sizes: list[int], others: list[int], careful: int
) -> None:
    example = Example(tenant.pool)
    both = await example.prepare(drawn)
    for request, _ in both:
        example.expected(request)
    operations = [sent for _, sent in both]

    async def read(batches: list[list[Operation]]) -> list[Outcome]:
        writer = writer_of(tenant.pool, careful_count=careful)
        return [outcome for batch in batches for outcome in await writer.apply(batch)]

    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(read(in_batches(operations, cut))) for cut in (sizes, others)]

    await example.compare()
    applied = sum(outcome.disposition is Disposition.APPLIED for reader in readers for outcome in reader.result())
    assert applied == example.model.logged_count()


NAMES = st.sampled_from(["", "a", "b", "A", "é", "$", "0", '"', "\\", "a.b"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(float),
    st.text("ab\x01é💊", max_size=3),
)
# Rather objects within objects than lists: there the rule is.
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=15,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=6)

_resource_numbers = itertools.count(1)


@pytest.mark.slow(3)
@settings(max_examples=60, suppress_health_check=NO_CHECKS)
@given(pairs=st.lists(st.tuples(OBJECTS, OBJECTS | st.dictionaries(NAMES, SCALARS)), min_size=1, max_size=20))
async def test_patch_keeps_to_the_rfc_for_any_documents(tenant: TenantCase, pairs: list[tuple[Any, Any]]) -> None:
    ids = [f"r{next(_resource_numbers)}" for _ in pairs]
    sent = [tenant.operation("create", *one) for one in zip(ids, (target for target, _ in pairs), strict=True)]
    sent += [tenant.operation("patch", *one) for one in zip(ids, (patch for _, patch in pairs), strict=True)]

    assert await tenant.apply(*sent) == [SUCCEEDED] * len(sent)

    stored = await tenant.resources()
    for resource_id, (target, patch) in zip(ids, pairs, strict=True):
        expected = merge_patch(parse_json(json.dumps(target)), parse_json(json.dumps(patch)))
        assert canonical_text(stored["patient", resource_id]) == canonical_text(expected)
