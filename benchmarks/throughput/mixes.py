"""Records as users have them, and one factor at a time from these. The same in every run."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from random import Random
from types import MappingProxyType
from typing import Final

import msgspec

from benchmarks.throughput.records import (
    BUSINESS_ID,
    FIRST_MOMENT,
    PAGE,
    SEED,
    STATUSES,
    TYPES,
    PutRecord,
    make_records,
)

FILLED_ROWS = 300_000  # resources that exist before a run, and rows of the log: what a shard has in use
KINDS: Final = MappingProxyType({"create": 450, "update": 300, "patch": 190, "delete": 50})
RECENT_SHARE = 0.2  # of the resources of a type that get most updates
RECENT_UPDATES = 0.8
HOT_COUNT = 2  # resources of a tenant and type that get all updates
WORDS: Final = (
    "agreed",
    "again",
    "anna",
    "brought",
    "called",
    "change",
    "desk",
    "done",
    "early",
    "form",
    "hall",
    "invoice",
    "key",
    "later",
    "mail",
    "moved",
    "next",
    "office",
    "paid",
    "phone",
    "room",
    "sent",
    "signed",
    "week",
)


class IdKind(StrEnum):
    """How ids are made."""

    UUID4 = "uuid4"  # at random
    UUID7 = "uuid7"  # by time, then at random
    ORDERED = "ordered"  # a number


class UpdatedRows(StrEnum):
    """The resources that updates, patches and deletes choose."""

    RECENT = "recent"  # four of five times among the last fifth
    HOT = "hot"  # a few
    COLD = "cold"  # any, with the same probability


class Mix(msgspec.Struct, frozen=True):
    """The records of a run, and the server that takes them."""

    name: str
    ids: IdKind = IdKind.UUID4
    document_bytes: int = 600
    updated: UpdatedRows = UpdatedRows.RECENT
    tenants: int = 200
    lists: int = 10  # of 1,000 records
    after_checkpoint: bool = False
    is_small: bool = False  # the small records in order of the comparison with others, on empty tables
    settings: Mapping[str, str] = MappingProxyType({})  # of the server
    kinds: Mapping[str, int] = KINDS  # of 1,000 records, without lists


REALISTIC = Mix("realistic")
MIXES: Final = (
    REALISTIC,
    Mix("small records in order, empty tables", is_small=True),
    Mix("UUIDv7", ids=IdKind.UUID7),
    Mix("ids in order", ids=IdKind.ORDERED),
    Mix("documents of 300 bytes", document_bytes=300),
    Mix("documents of 2,000 bytes", document_bytes=2000),
    Mix("updates of few rows", updated=UpdatedRows.HOT),
    Mix("updates of any rows", updated=UpdatedRows.COLD),
    Mix("5,000 tenants", tenants=5000),
    Mix("no lists", lists=0),
    Mix("shared_buffers of 16 MB", settings=MappingProxyType({"shared_buffers": "16MB"})),
    Mix("after a checkpoint", after_checkpoint=True),
)
QUICK_MIXES: Final = (REALISTIC, MIXES[1])


def mix_of(name: str) -> Mix:
    """Return the mix with this name. Raises `ValueError`."""
    for mix in MIXES:
        if mix.name == name:
            return mix
    raise ValueError(f"expected one of {', '.join(mix.name for mix in MIXES)}; got {name}")


class FilledRows(msgspec.Struct):
    """The rows that exist before a run, as tuples in the order of the tables' columns."""

    resources: Iterator[Sequence[object]]
    log: Iterator[Sequence[object]]


RESOURCE_COLUMNS: Final = ("id", "businessType", "resourceName", "resourceId", "data", "date", "lastUpdated")
LOG_COLUMNS: Final = (
    "tenant_id",
    "request_id",
    "operation",
    "resource_type",
    "resource_id",
    "status",
    "digest",
    "source",
    "stream_shard_id",
    "sequence_number",
    "requested_at",
    "received_at",
)


def mixed_records(mix: Mix, count: int, *, filled: int = FILLED_ROWS) -> Iterator[PutRecord]:
    """Yield *count* records; every operation succeeds where the *filled* rows of `filled_rows` exist."""
    if mix.is_small:
        yield from make_records(count, mix.tenants)
        return
    random = Random(SEED)
    documents = Documents(mix.document_bytes)
    known: dict[tuple[int, int], list[str]] = defaultdict(list)
    for number in range(filled):
        known[_place_of(number, mix.tenants)].append(id_of(mix.ids, "r", number))
    kinds = {**mix.kinds, "list": mix.lists}
    drawn = random.choices(tuple(kinds), tuple(kinds.values()), k=count)
    for number, kind in enumerate(drawn, start=filled):
        place = random.randrange(mix.tenants), random.randrange(len(TYPES))
        text = _record(random, kind, mix, documents, known[place], place, number)
        tenant, resource_type = place[0], TYPES[place[1]]
        yield PutRecord(f"{BUSINESS_ID}-{tenant}-{resource_type}", text.encode())


def filled_rows(mix: Mix, business_type: str, *, count: int = FILLED_ROWS) -> FilledRows:
    """Return the *count* rows of each table that exist before a run; none for small records."""
    if mix.is_small:
        return FilledRows(iter(()), iter(()))
    return FilledRows(_resource_rows(mix, business_type, count), _log_rows(mix, count))


def id_of(kind: IdKind, prefix: str, number: int) -> str:
    """Return the id of a number: for UUIDs always the same one."""
    if kind is IdKind.ORDERED:
        return f"{prefix}-{number:09}"
    digits = hashlib.md5(f"{prefix}{number}".encode(), usedforsecurity=False).hexdigest()
    if kind is IdKind.UUID7:
        milliseconds = int(FIRST_MOMENT.timestamp() * 1000) + number
        return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7{digits[13:16]}-9{digits[17:20]}-{digits[20:]}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-9{digits[17:20]}-{digits[20:]}"


class Documents:
    """Documents of about *size* bytes, as JSON: members of all kinds, then text."""

    def __init__(self, size: int) -> None:
        random = Random(SEED)
        self._size = size
        self._text = " ".join(random.choices(WORDS, k=4000))

    def make(self, random: Random, number: int) -> str:
        """Return a document; *number* is in some of its members."""
        head = (
            f'{{"name":"Person {number}","status":"{random.choice(STATUSES)}","rank":{random.randrange(5)},'
            f'"email":"person-{number}@example.com","active":true,"balance":{random.randrange(100_000) / 100},'
            f'"address":{{"street":"{random.choice(WORDS)} {number % 97}","city":"Berlin"}},"tags":["new","web"],'
        )
        missing = max(10, self._size - len(head) - 10)
        at = random.randrange(len(self._text) - missing)
        return f'{head}"note":"{self._text[at : at + missing]}"}}'


def _record(
    random: Random, kind: str, mix: Mix, documents: Documents, known: list[str], place: tuple[int, int], number: int
) -> str:
    """Return a record of *kind*; *known* are the ids of its tenant and type, oldest first."""
    members = ""
    match kind if known or kind == "list" else "create":
        case "create":
            kind = "create"
            known.append(id_of(mix.ids, "r", number))
            members = f'"resourceId":"{known[-1]}","data":{documents.make(random, number)},'
        case "update":
            resource_id = known[_draw_row(random, mix.updated, len(known))]
            members = f'"resourceId":"{resource_id}","data":{documents.make(random, number)},'
        case "patch":
            resource_id = known[_draw_row(random, mix.updated, len(known))]
            data = f'{{"status":"{random.choice(STATUSES)}","rank":{random.randrange(5)},"called":{number}}}'
            members = f'"resourceId":"{resource_id}","data":{data},'
        case "delete":  # never of the hot ones
            at = random.randrange(HOT_COUNT, len(known)) if len(known) > HOT_COUNT else -1
            members = f'"resourceId":"{known.pop(at)}",'
        case _:
            members = PAGE + ","
    return (
        f'{{"operation":"{kind}","businessId":"{BUSINESS_ID}","locationId":"{place[0]}",'
        f'"resourceType":"{TYPES[place[1]]}",{members}'
        f'"timestamp":"{_moment_of(number)}","requestId":"{id_of(mix.ids, "q", number)}"}}'
    )


def _draw_row(random: Random, updated: UpdatedRows, count: int) -> int:
    """Return the index of the resource to update, of *count*."""
    match updated:
        case UpdatedRows.HOT:
            return random.randrange(min(count, HOT_COUNT))
        case UpdatedRows.RECENT if random.random() < RECENT_UPDATES:
            return count - 1 - random.randrange(max(1, int(count * RECENT_SHARE)))
        case _:
            return random.randrange(count)


def _place_of(number: int, tenants: int) -> tuple[int, int]:
    """Return the tenant and the type of a filled row."""
    return number % tenants, number // tenants % len(TYPES)


def _moment_of(number: int) -> str:
    moment = FIRST_MOMENT + timedelta(milliseconds=number)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _resource_rows(mix: Mix, business_type: str, count: int) -> Iterator[Sequence[object]]:
    random, documents = Random(SEED), Documents(mix.document_bytes)
    for number in range(count):
        tenant, of_type = _place_of(number, mix.tenants)
        moment = FIRST_MOMENT + timedelta(milliseconds=number)
        ids = f"{BUSINESS_ID}-{tenant}", business_type, TYPES[of_type], id_of(mix.ids, "r", number)
        yield *ids, documents.make(random, number), moment, moment


def _log_rows(mix: Mix, count: int) -> Iterator[Sequence[object]]:
    received_at = datetime.now(UTC)
    for number in range(count):
        tenant, of_type = _place_of(number, mix.tenants)
        ids = id_of(mix.ids, "q", number), "create", TYPES[of_type], id_of(mix.ids, "r", number)
        digest = hashlib.sha256(b"%d" % number).digest() + b"\x01"
        origin = "kinesis", "shardId-000000000000", str(10**55 + number)
        moment = FIRST_MOMENT + timedelta(milliseconds=number)
        yield f"{BUSINESS_ID}-{tenant}", *ids, "succeeded", digest, *origin, moment, received_at
