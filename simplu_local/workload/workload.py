"""A repeatable stream of records for many tenants, each with its expected outcome from the model.

Records that depend on order (reuse of a request id, changes of one resource) share a partition key, because the
contract guarantees order only there. The same seed gives the same records.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from simplu_local.workload import bad_records, documents
from simplu_local.workload.reference_model import (
    READING_KINDS,
    WRITING_KINDS,
    Effect,
    OperationRequest,
    ReferenceModel,
    Verdict,
    parse_timestamp,
)

ALL_KINDS = (*WRITING_KINDS, *READING_KINDS)
RESOURCE_TYPES = {
    "dental": ("appointment", "patients", "treatment"),
    "gym": ("class", "member", "membership"),
    "hotel": ("booking", "room", "guest"),
    "restaurant": ("category", "products", "table"),
    "shop": ("customer", "product", "sale"),
}
AWKWARD_TYPE = "größe %2F/'x\""
NAMELESS_TYPE = "note"  # of creates without any id; never listed or read, because the worker derives their ids
BUSINESS_IDS = ("clinic", "o'brien", "a/b", "100%", 'say "hi"', "naïve-漢字", "🏨", "..", "back\\slash", "x;--")
LOCATION_IDS = ("main", "ground floor", "東京", "%2e", "a-b")
FIRST_MOMENT = datetime(2024, 1, 1, tzinfo=UTC)
LONG_DOCUMENT_SHARE = 0.003
UNREGISTERED_SHARE = 0.02
STRESS_COUNT = 4  # records that `Workload.stress` yields
HOT_RESOURCES = 12


@dataclass(frozen=True, slots=True)
class Tenant:
    """A business at a location."""

    business_id: str
    location_id: str
    business_type: str

    @property
    def tenant_id(self) -> str:
        """The id of the tenant."""
        return f"{self.business_id}-{self.location_id}"


@dataclass(frozen=True, slots=True)
class Shares:
    """The frequency of each kind of record, as a share of 1; the rest are new operations by *weights*."""

    retry: float = 0.02  # the producer's own retry, much later, with a newer timestamp
    duplicate: float = 0.02  # the same bytes again
    conflict: float = 0.01  # a used requestId with other content
    invalid: float = 0.015
    unstorable: float = 0.003  # data that PostgreSQL's jsonb rejects
    missing: float = 0.02  # an operation on a missing resource, or a create of an existing one
    nameless: float = 0.01  # no requestId
    weights: dict[str, float] = field(
        default_factory=lambda: {"create": 60, "update": 20, "patch": 15, "delete": 4, "read": 0.5, "list": 0.5}
    )


@dataclass(frozen=True, slots=True)
class Item:
    """One record to put, and its expected outcome."""

    partition_key: str
    record: bytes
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class _SentRequest:
    request: OperationRequest
    record: bytes


def make_tenants(count: int, *, run: str) -> list[Tenant]:
    """Return *count* tenants of the packaged types in turn. *run* distinguishes their ids from those of other runs."""
    types = tuple(RESOURCE_TYPES)
    return [
        Tenant(
            f"{BUSINESS_IDS[number % len(BUSINESS_IDS)]}-{run}-{number}",
            LOCATION_IDS[number % len(LOCATION_IDS)],
            types[number % len(types)],
        )
        for number in range(count)
    ]


class Workload:
    """Makes records, and applies them to the model of the expected outcome."""

    def __init__(
        self,
        seed: int,
        tenants: Sequence[Tenant],
        *,
        kinds: Sequence[str] = ALL_KINDS,
        shares: Shares | None = None,
        unregistered: Sequence[Tenant] = (),
    ) -> None:
        self.model = ReferenceModel()
        self.tenants = tuple(tenants)
        self.counts: Counter[str] = Counter()
        self._unregistered = tuple(unregistered)
        self._shares = shares or Shares()
        self._kinds = tuple(kinds)
        self._weights = [self._shares.weights[kind] for kind in kinds]
        self._random = Random(seed)
        self._number = 0
        self._sent: dict[str, list[_SentRequest]] = defaultdict(list)  # by tenant; only records with a requestId
        self._ids: dict[tuple[str, str], list[str]] = defaultdict(list)  # by tenant and type, deleted ones too
        for tenant in tenants:
            self.model.add_tenant(tenant.business_id, tenant.location_id, tenant.business_type)

    def items(self, count: int) -> Iterator[Item]:
        """Yield *count* records, then one last `create` for each partition key.

        When the last ones are applied, all earlier records of their partition keys are applied too.
        """
        for _ in range(count):
            yield self._make_next()
        for tenant in self.tenants:
            for resource_type in (*_types_of(tenant), NAMELESS_TYPE):
                yield self._make_fresh(tenant, resource_type, "create")

    def closing_count(self) -> int:
        """Return how many records `items` adds after the requested ones."""
        return sum(len(_types_of(tenant)) + 1 for tenant in self.tenants)

    def stress(self) -> Iterator[Item]:
        """Yield records of extreme size and depth, then an ordinary one of the same partition key."""
        tenant = self.tenants[0]
        resource_type = _types_of(tenant)[0]
        key = _partition_key(tenant, resource_type)
        big = self._make_request(tenant, resource_type, "create")
        big = replace(
            big, resource_id=self._new_id(tenant, resource_type), data=json.dumps({"big": "0123456789" * 95_000})
        )
        yield self._make_item(big)
        deep = replace(big, resource_id="too-deep", request_id=self._new_request_id(), data=bad_records.too_deep_data())
        self.counts["too_deep"] += 1
        record = encode(deep, self._next_timestamp(), self._random)
        yield Item(key, record, Verdict(Effect.REJECTED, bad_records.INVALID_MESSAGE))
        self.counts["too_large"] += 1
        envelope = self._make_envelope(tenant, resource_type)
        yield Item(key, bad_records.too_large_record(envelope), Verdict(Effect.REJECTED, bad_records.TOO_LARGE))
        yield self._make_fresh(tenant, resource_type, "create")

    def _make_next(self) -> Item:
        random, shares = self._random, self._shares
        if self._unregistered and random.random() < UNREGISTERED_SHARE:
            return self._make_unregistered(random.choice(self._unregistered))
        tenant = random.choice(self.tenants)
        makers: list[tuple[float, Callable[[Tenant], Item]]] = [
            (shares.invalid, self._make_invalid),
            (shares.unstorable, self._make_unstorable),
            (shares.nameless, self._make_nameless),
            (shares.missing, self._make_impossible),
        ]
        if self._sent[tenant.tenant_id]:
            makers += [
                (shares.retry, self._make_retry),
                (shares.duplicate, self._make_duplicate),
                (shares.conflict, self._make_conflict),
            ]
        draw = random.random()
        for share, make in makers:
            draw -= share
            if draw < 0:
                return make(tenant)
        return self._make_fresh(tenant, random.choice(_types_of(tenant)), random.choices(self._kinds, self._weights)[0])

    def _make_fresh(self, tenant: Tenant, resource_type: str, kind: str) -> Item:
        known = self._ids[tenant.tenant_id, resource_type]
        if not known and kind not in {"create", "list"}:
            kind = "create"
        request = self._make_request(tenant, resource_type, kind)
        if kind == "create":
            generated = self._random.random() < 0.03
            resource_id = request.request_id if generated else self._new_id(tenant, resource_type)
            known.append(str(resource_id))
            return self._make_item(replace(request, resource_id=None if generated else resource_id))
        if kind == "list":
            return self._make_item(self._make_list_request(request))
        pool = known[-HOT_RESOURCES:] if self._random.random() < 0.4 else known
        return self._make_item(replace(request, resource_id=self._random.choice(pool)))

    def _make_list_request(self, request: OperationRequest) -> OperationRequest:
        random = self._random
        filters: dict[str, Any] = {}
        if random.random() < 0.5:
            filters["status"] = random.choice(documents.STATUSES)
        if random.random() < 0.3:
            rank = random.randrange(5)
            filters["rank"] = random.choice((rank, {"from": rank}, {"in": [rank, 1, "x"]}, {"from": None, "to": rank}))
        if random.random() < 0.1:
            filters["details.inner"] = {"exists": random.random() < 0.5}
        if random.random() < 0.3:
            filters["startDate"] = "2024-01-01"
            filters["endDate"] = random.choice(("2024-01-01", "2024-01-03", "2031-01-01"))
        if random.random() < 0.1:
            filters["date"] = "2024-01-01"
        # Few rows a page: near the limit of a result's size, the format of its numbers would decide.
        paging: dict[str, Any] = {"page": random.choice((1, 1, 2, 50)), "limit": random.choice((1, 2, 4))}
        if random.random() < 0.2:
            by = random.choice(({}, {"by": "rank"}, {"by": "status"}, {"by": "details.inner"}))
            paging |= {"sort": by | {"descending": random.random() < 0.5}, "total": random.random() < 0.5}
        return replace(request, filters=json.dumps(filters) if filters else None, pagination=json.dumps(paging))

    def _make_retry(self, tenant: Tenant) -> Item:
        sent = self._random.choice(self._sent[tenant.tenant_id])
        self.counts["retried"] += 1
        moment = self._next_timestamp()
        request = replace(sent.request, timestamp=parse_timestamp(moment))
        return Item(_key_of(request), encode(request, moment, self._random), self.model.apply(request))

    def _make_duplicate(self, tenant: Tenant) -> Item:
        sent = self._random.choice(self._sent[tenant.tenant_id])
        self.counts["duplicated"] += 1
        return Item(_key_of(sent.request), sent.record, self.model.apply(sent.request))

    def _make_conflict(self, tenant: Tenant) -> Item:
        sent = self._random.choice(self._sent[tenant.tenant_id])
        self.counts["reused"] += 1
        request = sent.request
        if request.data is None:
            request = replace(request, kind="create", data="{}", filters=None, pagination=None)
        elif self._random.random() < 0.3:
            # Equal as JSON but not in its bytes: another operation.
            request = replace(request, data="{ " + request.data[1:])
        else:
            request = replace(request, data='{"another": "operation"}')
        moment = self._next_timestamp()
        return Item(_key_of(request), encode(request, moment, self._random), self.model.apply(request))

    def _make_invalid(self, tenant: Tenant) -> Item:
        self.counts["invalid"] += 1
        resource_type = self._random.choice(_types_of(tenant))
        record, reasons = bad_records.make_bad_record(self._random, self._make_envelope(tenant, resource_type))
        return Item(_partition_key(tenant, resource_type), record, Verdict(Effect.REJECTED, reasons))

    def _make_unstorable(self, tenant: Tenant) -> Item:
        self.counts["unstorable"] += 1
        resource_type = self._random.choice(_types_of(tenant))
        model = self.model.tenants[tenant.tenant_id]
        live = [key for key in model.rows if key[0] == model.stored_name(resource_type)][-HOT_RESOURCES:]
        kind = self._random.choice(("create", "update", "patch")) if live else "create"
        if kind not in self._kinds:
            kind = "create"
        request = self._make_request(tenant, resource_type, kind)
        resource_id = self._random.choice(live)[1] if kind != "create" else self._new_id(tenant, resource_type)
        return self._make_item(
            replace(request, resource_id=resource_id, data=self._random.choice(documents.UNSTORABLE))
        )

    def _make_nameless(self, tenant: Tenant) -> Item:
        self.counts["nameless"] += 1
        request = replace(self._make_request(tenant, NAMELESS_TYPE, "create"), request_id=None)
        if self._random.random() < 0.5:
            request = replace(request, resource_id=self._new_id(tenant, NAMELESS_TYPE))
        return self._make_item(request)

    def _make_impossible(self, tenant: Tenant) -> Item:
        self.counts["impossible"] += 1
        resource_type = self._random.choice(_types_of(tenant))
        known = self._ids[tenant.tenant_id, resource_type]
        if known and self._random.random() < 0.5:
            request = self._make_request(tenant, resource_type, "create")
            return self._make_item(replace(request, resource_id=self._random.choice(known)))
        kinds = [kind for kind in self._kinds if kind not in {"create", "list"}]
        request = self._make_request(tenant, resource_type, self._random.choice(kinds or ["delete"]))
        return self._make_item(replace(request, resource_id=self._new_id(tenant, resource_type)))

    def _make_unregistered(self, tenant: Tenant) -> Item:
        self.counts["unregistered"] += 1
        request = replace(self._make_request(tenant, "appointment", "create"), resource_id="never")
        return Item(_key_of(request), encode(request, self._next_timestamp(), self._random), Verdict(Effect.HELD))

    def _make_item(self, request: OperationRequest) -> Item:
        moment = self._next_timestamp()
        request = replace(request, timestamp=parse_timestamp(moment))
        record = encode(request, moment, self._random)
        verdict = self.model.apply(request)
        self.counts[request.kind] += 1
        if request.request_id is not None:
            self._sent[request.tenant_id].append(_SentRequest(request, record))
        return Item(_key_of(request), record, verdict)

    def _make_request(self, tenant: Tenant, resource_type: str, kind: str) -> OperationRequest:
        data = None
        if kind in {"create", "update"}:
            data = documents.document(self._random, long=self._random.random() < LONG_DOCUMENT_SHARE)
        elif kind == "patch":
            data = documents.patch_document(self._random)
        return OperationRequest(
            kind,
            tenant.business_id,
            tenant.location_id,
            resource_type,
            None,
            FIRST_MOMENT,
            self._new_request_id(),
            data,
        )

    def _make_envelope(self, tenant: Tenant, resource_type: str) -> bad_records.Envelope:
        return {
            "operation": "create",
            "businessId": tenant.business_id,
            "locationId": tenant.location_id,
            "resourceType": resource_type,
            "resourceId": "never",
            "data": {"never": "kept"},
            "timestamp": "2024-01-01T00:00:00Z",
            "requestId": self._new_request_id(),
        }

    def _next_timestamp(self) -> str:
        self._number += 1
        return documents.timestamp(self._random, FIRST_MOMENT + timedelta(seconds=17.003 * self._number))

    def _new_request_id(self) -> str:
        prefix = self._random.choice(("req", "ключ", "r 🔑", "o'k"))
        return f"{prefix}-{self._random.getrandbits(64):016x}"

    def _new_id(self, tenant: Tenant, resource_type: str) -> str:
        self._number += 1
        return documents.resource_id(self._random, f"{resource_type}-{tenant.business_type}", self._number)


def encode(request: OperationRequest, timestamp: str, random: Random) -> bytes:
    """Encode *request* as a record with members in random order, ignored members, and whitespace where JSON allows it.

    The members of the operation's content keep their bytes, so that two encodings of one request are redeliveries.
    """
    ascii_only = zlib.crc32(str(request.request_id).encode()) % 3 == 0
    texts = {
        "operation": request.kind,
        "businessId": request.business_id,
        "locationId": request.location_id,
        "resourceType": request.resource_type,
        "resourceId": request.resource_id,
        "requestId": request.request_id,
        "timestamp": timestamp,
    }
    members = [
        f'"{name}": {json.dumps(text, ensure_ascii=ascii_only)}' for name, text in texts.items() if text is not None
    ]
    raw = {"data": request.data, "filters": request.filters, "pagination": request.pagination}
    members += [f'"{name}": {text}' for name, text in raw.items() if text is not None]
    if random.random() < 0.1:
        members.append('"traceId": {"ignored": [1, "\\u0041"]}')
    random.shuffle(members)
    text = random.choice((", ", ", ", ", ", ",\n")).join(members)
    return (random.choice(("{%s}", "{ %s }\n", "\n{\t%s}")) % text).encode()


def _types_of(tenant: Tenant) -> tuple[str, ...]:
    return (*RESOURCE_TYPES[tenant.business_type], AWKWARD_TYPE)


def _partition_key(tenant: Tenant, resource_type: str) -> str:
    return f"{tenant.tenant_id}-{resource_type}"


def _key_of(request: OperationRequest) -> str:
    return f"{request.tenant_id}-{request.resource_type}"
