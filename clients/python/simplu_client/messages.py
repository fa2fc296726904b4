"""Operations, order events and control messages as docs/sending.md has them, and their bytes. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NotRequired, TypeAlias, TypedDict

Document: TypeAlias = Mapping[str, Any]
PartitionKeyRule: TypeAlias = Literal["resource-type", "tenant"]
MAX_RECORD_BYTES = 1024 * 1024  # data and partition key: the default of Kinesis, and the quota of SQS
MAX_KEY_CHARS = 256  # API_PutRecordsRequestEntry
GROUP = re.compile(r"[!-~]{1,128}")  # a MessageGroupId: API_SendMessage


class Tenant(TypedDict):
    """One location of one business."""

    businessId: str
    locationId: str


class _Operation(Tenant):
    resourceType: str
    timestamp: NotRequired[str]  # RFC 3339; else the time of queueing
    requestId: NotRequired[str]  # only to send again what was not sent
    traceparent: NotRequired[str]


class Create(_Operation):
    """Stores `data`; without `resourceId` the id is the `requestId`."""

    operation: Literal["create"]
    resourceId: NotRequired[str]
    data: Document


class Change(_Operation):
    """Replaces the document by `data`, or merges `data` into it by RFC 7396."""

    operation: Literal["update", "patch"]
    resourceId: str
    data: Document


class Use(_Operation):
    """Removes the document, or reads it."""

    operation: Literal["delete", "read"]
    resourceId: str


class Pagination(TypedDict, total=False):
    """A page of a `list`; both count from 1."""

    page: int
    limit: int


class List(_Operation):
    """Lists the documents of a type."""

    operation: Literal["list"]
    filters: NotRequired[Document]
    pagination: NotRequired[Pagination]


Operation: TypeAlias = Create | Change | Use | List


class OrderCreate(Tenant):
    """A new order; without `orderId` its id is the `deduplicationId`."""

    type: Literal["CREATE"]
    orderId: NotRequired[str]
    data: Document
    deduplicationId: NotRequired[str]


class OrderUpdate(Tenant):
    """Merges `data` into an order."""

    type: Literal["UPDATE"]
    orderId: str
    data: Document
    deduplicationId: NotRequired[str]


class OrderDelete(Tenant):
    """Removes an order."""

    type: Literal["DELETE"]
    orderId: str
    deduplicationId: NotRequired[str]


OrderEvent: TypeAlias = OrderCreate | OrderUpdate | OrderDelete


class ShardCreation(Tenant):
    """Creates a tenant."""

    messageType: Literal["SHARD_CREATION"]
    businessType: str  # dental, gym, hotel, or a type of the shard's own
    timestamp: NotRequired[str]


class ShardDestruction(Tenant):
    """Destroys a tenant."""

    messageType: Literal["SHARD_DESTRUCTION"]
    action: Literal["destroy"]
    timestamp: NotRequired[str]


class BusinessDestruction(TypedDict):
    """Destroys all tenants of a business."""

    messageType: Literal["SHARD_DESTRUCTION"]
    businessId: str
    action: Literal["destroy_all"]
    timestamp: NotRequired[str]


class UpdateResourceId(Tenant):
    """Gives a resource another id."""

    messageType: Literal["UPDATE_RESOURCE_ID"]
    resourceType: str
    oldResourceId: str
    newResourceId: str
    additionalData: NotRequired[Document]
    timestamp: NotRequired[str]


class AdminAccountCreation(Tenant):
    """Adds the administrator of a tenant."""

    messageType: Literal["ADMIN_ACCOUNT_CREATION"]
    businessType: str
    adminEmail: str
    adminUserId: str
    timestamp: NotRequired[str]


ControlMessage: TypeAlias = (
    ShardCreation | ShardDestruction | BusinessDestruction | UpdateResourceId | AdminAccountCreation
)

# The members of each kind: those that are required, and the texts with their longest.
_TENANT = ("businessId", "locationId")
_REQUIRED: dict[str, tuple[str, ...]] = {
    "create": (*_TENANT, "resourceType", "data"),
    **dict.fromkeys(("update", "patch"), (*_TENANT, "resourceType", "resourceId", "data")),
    **dict.fromkeys(("delete", "read"), (*_TENANT, "resourceType", "resourceId")),
    "list": (*_TENANT, "resourceType"),
    "CREATE": (*_TENANT, "data"),
    "UPDATE": (*_TENANT, "orderId", "data"),
    "DELETE": (*_TENANT, "orderId"),
    "SHARD_CREATION": (*_TENANT, "businessType"),
    "SHARD_DESTRUCTION": ("businessId",),
    "UPDATE_RESOURCE_ID": (*_TENANT, "resourceType", "oldResourceId", "newResourceId"),
    "ADMIN_ACCOUNT_CREATION": (*_TENANT, "businessType", "adminEmail", "adminUserId"),
}
_OBJECTS = ("data", "filters", "pagination", "additionalData")
_LONG = ("resourceId", "orderId", "oldResourceId", "newResourceId", "adminUserId")
_TEXTS = dict.fromkeys((*_TENANT, "resourceType", "requestId", "deduplicationId"), 128) | dict.fromkeys(_LONG, 256)
_TIME = re.compile(  # the pattern of the worker's schemas
    r"^(?!0000|0001-01-01[^+]*\+(?!00:00)|9999-12-31[Tt][^-]*-(?!00:00))"
    r"([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    r"|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
    r"([Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])?)?(?![\s\S])"
)


class InvalidMessage(NamedTuple):
    """Why the worker would refuse a message."""

    text: str


class Encoded(NamedTuple):
    """The bytes of a message."""

    data: bytes
    size_bytes: int


def encode(message: Mapping[str, Any], kind_name: str, *, key: str = "") -> Encoded | InvalidMessage:
    """Return the bytes of *message*, whose kind is its member *kind_name*; its size includes *key*."""
    problem = _problem_of_kind(message, kind_name) or _problem_of_members(message)
    if problem is not None:
        return InvalidMessage(problem)
    try:
        text = json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        data = text.encode()
    except (TypeError, ValueError) as exc:  # a lone surrogate, NaN, or no JSON
        return InvalidMessage(f"expected JSON: {type(exc).__name__}")
    size_bytes = len(data) + len(key.encode())
    if size_bytes > MAX_RECORD_BYTES:
        return InvalidMessage(f"expected at most {MAX_RECORD_BYTES} bytes with the partition key, got {size_bytes}")
    return Encoded(data, size_bytes)


def _problem_of_kind(message: Mapping[str, Any], kind_name: str) -> str | None:
    kind, action = message.get(kind_name), message.get("action")
    if not isinstance(kind, str) or kind not in _REQUIRED:
        return f"expected a known {kind_name}, got {kind!r}"
    if kind == "SHARD_DESTRUCTION" and action not in ("destroy", "destroy_all"):
        return f"action: expected destroy or destroy_all, got {action!r}"
    of_action = ("locationId",) if action == "destroy" else ()
    missing = [name for name in (*_REQUIRED[kind], *of_action) if message.get(name) is None]
    return f"expected a member {missing[0]} of {kind}, got none" if missing else None


def _problem_of_members(message: Mapping[str, Any]) -> str | None:
    for name, value in message.items():
        if name in _TEXTS and value is not None and (problem := _text_problem(value, _TEXTS[name])):
            return f"{name}: expected {problem}"
        if name in _OBJECTS and value is not None and not isinstance(value, Mapping):
            return f"{name}: expected an object"
    timestamp = message.get("timestamp")
    if timestamp is not None and not (isinstance(timestamp, str) and _TIME.search(timestamp)):
        return "timestamp: expected a time of RFC 3339, such as 2026-01-31T09:00:00Z, or a date"
    if str(message.get("requestId", message.get("deduplicationId", ""))).startswith("simplu:"):
        return "expected an id of your own, got one that begins with simplu:"
    return None


def _text_problem(value: object, max_chars: int) -> str | None:
    if isinstance(value, str) and 0 < len(value) <= max_chars and not re.search("[\0\ud800-\udfff]", value):
        return None
    return f"text of 1 to {max_chars} characters without U+0000 and lone surrogates"


def plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return *message* with its texts as such: of a `class Kind(str, Enum)` an f-string would have the name."""
    return {name: str.__str__(value) if isinstance(value, str) else value for name, value in message.items()}


def partition_key(message: Mapping[str, Any], rule: PartitionKeyRule = "resource-type") -> str:
    """Return the partition key of an operation by the *rule* of the worker: all operations of a resource share it."""
    key = f"{message.get('businessId')}-{message.get('locationId')}"
    key = key if rule == "tenant" else f"{key}-{message.get('resourceType')}"
    return key if len(key) <= MAX_KEY_CHARS else _digest(key)


def queue_id(text: str) -> str:
    """Return *text* as SQS allows the id of a group, or a digest of it."""
    return text if GROUP.fullmatch(text) else _digest(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def uuid7(ms: int, random: bytes) -> str:
    """Return a UUID of version 7 (RFC 9562): the time in milliseconds, and 10 random bytes."""
    number = ms << 80 | 7 << 76 | (int.from_bytes(random[:2], "big") & 0xFFF) << 64
    number |= 2 << 62 | int.from_bytes(random[2:], "big") & (1 << 62) - 1
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
