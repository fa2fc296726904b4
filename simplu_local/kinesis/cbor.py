"""Requests and answers in CBOR, in which the AWS SDK for Java speaks to Kinesis, from and to JSON. Pure.

The SDK writes blobs as byte strings, where JSON has base64, and times as milliseconds with tag 1, where it has seconds.
"""

from __future__ import annotations

import base64
from typing import Any, Final

import cbor2
import msgspec

from simplu_local.kinesis.errors import KinesisError

CONTENT_TYPE: Final = "application/x-amz-cbor-1.1"
MAX_DEPTH: Final = 32  # no request of the API has a fifth of that
BLOBS: Final = frozenset({"Data"})
TIMES_END_WITH: Final = "Timestamp"
_TIME_TAG: Final = 1


def json_of(body: bytes) -> bytes:
    """Return a request as JSON. Raises KinesisError when *body* is not CBOR, or too deep."""
    try:
        value = cbor2.loads(body, max_depth=MAX_DEPTH, semantic_decoders={_TIME_TAG: lambda millis, _: millis / 1000})
        return msgspec.json.encode(None if value is cbor2.undefined else value)
    except (cbor2.CBORError, TypeError) as exc:
        raise KinesisError("SerializationException", f"expected CBOR: {exc}") from exc


def cbor_of(body: bytes) -> bytes:
    """Return an answer in JSON, or none, as CBOR."""
    return cbor2.dumps(_as_sdk_has_it(msgspec.json.decode(body), "")) if body else b""


def _as_sdk_has_it(value: Any, name: str) -> Any:
    match value:
        case list():
            return [_as_sdk_has_it(member, name) for member in value]
        case dict():
            return {key: _as_sdk_has_it(member, key) for key, member in value.items()}
        case str() if name in BLOBS:
            return base64.b64decode(value)
        case int() | float() if name.endswith(TIMES_END_WITH):
            return cbor2.CBORTag(_TIME_TAG, round(value * 1000))
    return value
