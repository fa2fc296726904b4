"""Records of every kind that can never be an operation, each with the reasons that its dead letter may name."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

# The contract allows either reason for an unknown `operation`.
UNKNOWN_OPERATION = frozenset({"unknown_type", "invalid_message"})
INVALID_JSON = frozenset({"invalid_json"})
INVALID_MESSAGE = frozenset({"invalid_message"})
TOO_LARGE = frozenset({"too_large"})
TOO_DEEP = 10_000
OPERATION_MAX_BYTES = 10_485_760  # OPERATION_MAX_BYTES's default, docs/configuration.md

Envelope = dict[str, Any]
NOT_JSON: tuple[bytes, ...] = (
    b"not json at all",
    b"{",
    b'{"operation": "create", ',
    b"{'operation': 'create'}",
    b"\xff\xfe\x00\x01",
    b'{"operation": "create"} and more',
    b'{"operation": NaN}',
)
NOT_AN_OBJECT: tuple[bytes, ...] = (b"[]", b'"create"', b"null", b"42", b"true")


def make_bad_record(random: Random, envelope: Envelope) -> tuple[bytes, frozenset[str]]:
    """Make *envelope*, the members of a valid `create`, invalid; return the record and the allowed reasons."""
    draw = random.random()
    if draw < 0.2:
        return random.choice(NOT_JSON), INVALID_JSON
    if draw < 0.25:
        broken = json.dumps(envelope).encode().replace(b'"operation"', b'"oper\xed\xa0\x80ation"')
        return broken, INVALID_JSON
    if draw < 0.35:
        return random.choice(NOT_AN_OBJECT), INVALID_MESSAGE
    if draw < 0.45:
        spoilt = envelope | {"operation": random.choice(("destroy", "CREATE", "", "upsert"))}
        return json.dumps(spoilt).encode(), UNKNOWN_OPERATION
    spoilt = dict(envelope)
    random.choice(SPOILERS)(spoilt)
    return json.dumps(spoilt).encode(), INVALID_MESSAGE


def too_large_record(envelope: Envelope) -> bytes:
    """Return a valid `create` one byte longer than an operation may be."""
    empty = len(json.dumps(envelope | {"data": {"filler": ""}}).encode())
    return json.dumps(envelope | {"data": {"filler": "x" * (OPERATION_MAX_BYTES + 1 - empty)}}).encode()


def too_deep_data() -> str:
    """Return the JSON text of an object nested deeper than parsers allow."""
    return '{"deep": ' + "[" * TOO_DEEP + "]" * TOO_DEEP + "}"


def _put(name: str, value: Any) -> Callable[[Envelope], None]:
    def spoil(envelope: Envelope) -> None:
        envelope[name] = value

    return spoil


def _puts(name: str, *values: Any) -> list[Callable[[Envelope], None]]:
    return [_put(name, value) for value in values]


def _drop(name: str) -> Callable[[Envelope], None]:
    def spoil(envelope: Envelope) -> None:
        envelope.pop(name, None)

    return spoil


def _without_resource_id(kind: str) -> Callable[[Envelope], None]:
    def spoil(envelope: Envelope) -> None:
        envelope["operation"] = kind
        envelope.pop("resourceId", None)

    return spoil


def _without_data(kind: str) -> Callable[[Envelope], None]:
    def spoil(envelope: Envelope) -> None:
        envelope["operation"] = kind
        envelope.pop("data", None)

    return spoil


SPOILERS: tuple[Callable[[Envelope], None], ...] = (
    *(_drop(name) for name in ("operation", "businessId", "locationId", "resourceType", "timestamp")),
    *(_without_data(kind) for kind in ("create", "update", "patch")),
    *(_without_resource_id(kind) for kind in ("update", "patch", "delete")),
    *_puts("businessId", "", "x" * 129, 7, [], "nul\x00"),
    *_puts("locationId", "", "x" * 129, 7, [], "lone \udc00"),
    *_puts("resourceType", "", "x" * 129, 7, [], "nul\x00", "lone \ud800"),
    *_puts("resourceId", "", "x" * 257, 7, {}, "nul\x00", "lone \ud800"),
    *_puts("requestId", "", "x" * 129, 7, "nul\x00", "lone \udfff", "simplu:mine"),
    *_puts("data", [], "text", 3, True),
    *_puts("timestamp", "", "soon", 1_700_000_000, "2024-13-01", "2024-W10-1", "10000-01-01T00:00:00Z"),
    *_puts("operation", 5),
)
