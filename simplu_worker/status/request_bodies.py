"""What requests ask: their queries and bodies as types, from which `/openapi.json` is made too; and responses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias, TypeVar, assert_never

import msgspec
from aiohttp import web
from msgspec import Meta

from simplu_worker.consumers.operation_taps import TapFilter
from simplu_worker.operations.operation import ID_MAX
from simplu_worker.shards.listing import (
    DEFAULT_LIMIT,
    LIMIT_MAX,
    TEXT_MAX,
    ListRequest,
    SearchPosition,
    check_request,
    decode_cursor,
)
from simplu_worker.shards.types import PAUSE_MAX_S, RATE_MAX, RATE_MIN, WEIGHT_MAX, WEIGHT_MIN, TenantControls
from simplu_worker.status.words import BadRequestError
from simplu_worker.vocabulary import Failure, OperationKind, OperationOutcome, OperationStatus

PAUSE_DEFAULT_S: Final = 4 * 3600.0
WAIT_MAX_S: Final = 20.0
STORABLE: Final = r"^[^\u0000\ud800-\udfff]*$"  # no lone surrogates; those of a pair are one character

Id: TypeAlias = Annotated[str, Meta(min_length=1, max_length=ID_MAX, pattern=STORABLE)]
Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=TEXT_MAX, pattern=STORABLE)]
Time: TypeAlias = Annotated[datetime, Meta(tz=True)]
Wait: TypeAlias = Annotated[float, Meta(ge=0, le=WAIT_MAX_S)]
Asked = TypeVar("Asked", bound=msgspec.Struct)


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A request, of which every member is known."""


class RetryRequest(Strict, frozen=True):
    """A target as `/status` shows it, or none for all."""

    target: str | None = None


class PauseRequest(Strict, frozen=True):
    """The body of `POST /tenants/…/pause`: for how many seconds."""

    seconds: Annotated[float, Meta(gt=0, le=PAUSE_MAX_S)] = PAUSE_DEFAULT_S


class ResumeRequest(Strict, frozen=True):
    """The body of `POST /tenants/…/resume`: empty."""


class WeightRequest(Strict, frozen=True):
    """The body of `POST /tenants/…/weight`."""

    weight: Annotated[float, Meta(ge=WEIGHT_MIN, le=WEIGHT_MAX)]


class LimitRequest(Strict, frozen=True):
    """The body of `POST /tenants/…/limit`: what it may send in a second; 0 ends a limit, and one left out stays."""

    operations_per_second: Annotated[float, Meta(ge=0, le=RATE_MAX)] | None = None
    bytes_per_second: Annotated[float, Meta(ge=0, le=RATE_MAX)] | None = None

    def __post_init__(self) -> None:
        if any(0 < (rate or 0) < RATE_MIN for rate in (self.operations_per_second, self.bytes_per_second)):
            raise ValueError(f"expected limits of 0, or of at least {RATE_MIN} for each second")


def controls_of(asked: PauseRequest | ResumeRequest | WeightRequest | LimitRequest) -> TenantControls:
    """Return what a request sets."""
    match asked:
        case PauseRequest():
            return TenantControls(pause_s=asked.seconds)
        case ResumeRequest():
            return TenantControls(pause_s=0.0)
        case WeightRequest():
            return TenantControls(weight=asked.weight)
        case LimitRequest():
            return TenantControls(operations_per_s=asked.operations_per_second, bytes_per_s=asked.bytes_per_second)
        case _:
            assert_never(asked)


class PurgeQuery(Strict, frozen=True):
    """The query of `DELETE /sqs/purge`."""

    queue: Annotated[
        str | None, Meta(description="The name of the queue; with one source queue it may be left out.")
    ] = None


class OperationQuery(Strict, frozen=True):
    """The query of `GET /operations/{requestId}`."""

    business_id: Annotated[Id | None, Meta(description="The business of the tenant.")] = None
    location_id: Annotated[Id | None, Meta(description="The location of the tenant.")] = None
    wait: Annotated[
        Wait | None,
        Meta(description="So many seconds the answer may wait until it is decided or held; with its tenant."),
    ] = None

    def __post_init__(self) -> None:
        """Refuse half a tenant, and a wait that would ask all shards."""
        _require_both(self.business_id, self.location_id)
        if self.wait is not None and self.business_id is None:
            raise ValueError("wait: expected businessId and locationId too, as each look would ask all shards")


class ListQuery(Strict, frozen=True):
    """The query of `GET /operations` (docs/outcomes.md)."""

    business_id: Annotated[Id, Meta(description="The business of the tenant.")]
    location_id: Annotated[Id, Meta(description="The location of the tenant.")]
    resource_type: Annotated[Text | None, Meta(description="Only operations on resources of this type.")] = None
    resource_id: Annotated[Text | None, Meta(description="Only operations on the resource with this id.")] = None
    since: Annotated[Time | None, Meta(description="Only operations completed at this time or later.")] = None
    until: Annotated[Time | None, Meta(description="Only operations completed before this time.")] = None
    status: Annotated[OperationStatus | None, Meta(description="Only operations with this status.")] = None
    error: Annotated[Failure | None, Meta(description="Only operations with this error.")] = None
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX, description="At most so many operations.")] = DEFAULT_LIMIT
    after: Annotated[str | None, Meta(description="The `next` of the page before.")] = None

    def request(self) -> ListRequest:
        """Return the request for a page. Raises BadRequestError."""
        about = self.resource_type, self.resource_id, self.since, self.until, self.status, self.error, self.limit
        try:
            after = SearchPosition() if self.after is None else decode_cursor(self.after)
            return check_request(ListRequest(*about, after))
        except ValueError as exc:
            raise BadRequestError(str(exc)) from None


class TapQuery(Strict, frozen=True):
    """The query of `GET /tap`."""

    business_id: Annotated[str | None, Meta(description="The business of the tenant.")] = None
    location_id: Annotated[str | None, Meta(description="The location of the tenant.")] = None
    resource_type: Annotated[str | None, Meta(description="Only operations on resources of this type.")] = None
    operation: Annotated[OperationKind | None, Meta(description="Only operations of this kind.")] = None
    outcome: Annotated[OperationOutcome | None, Meta(description="Only operations with this outcome.")] = None
    content: Annotated[bool, Meta(description="`true` shows the data, to operators.")] = False

    def __post_init__(self) -> None:
        """Refuse half a tenant."""
        _require_both(self.business_id, self.location_id)

    @property
    def chosen(self) -> TapFilter:
        """The operations to show."""
        tenant = self.business_id, self.location_id
        return TapFilter(*tenant, self.resource_type, self.operation, self.outcome, self.content)


def _require_both(business_id: str | None, location_id: str | None) -> None:
    if (business_id is None) != (location_id is None):
        raise ValueError("expected businessId and locationId together, or neither of them")


async def read_body(request: web.Request, kind: type[Asked]) -> Asked:
    """Return the body of *request*; an empty one is an empty object. Raises BadRequestError."""
    try:
        text = await request.read()
    except (ConnectionError, web.RequestPayloadError):
        raise BadRequestError("expected the whole body, got the end of the connection or another encoding") from None
    try:
        return msgspec.json.decode(text or b"{}", type=kind)
    except msgspec.ValidationError as exc:
        raise BadRequestError(str(exc)) from None
    except (msgspec.DecodeError, UnicodeError):
        raise BadRequestError("expected a JSON object as the body, got other bytes") from None


def read_query(pairs: Iterable[tuple[str, str]], kind: type[Asked]) -> Asked:
    """Return a query; an empty value counts as absent. Raises BadRequestError."""
    given: dict[str, str] = {}
    for name, value in pairs:
        if value and given.setdefault(name, value) != value:
            raise BadRequestError(f"{name!r}: expected one value, got several")
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise BadRequestError(str(exc)) from None
    except UnicodeError:
        raise BadRequestError("expected parameters of UTF-8, got other bytes") from None


COMMON_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Server": "simplu-worker",  # hides the versions of Python and of the library
}
HttpAnswer = tuple[int, dict[str, Any]]  # an HTTP status, and JSON members


def json_response(status: int, answer: dict[str, Any], *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return *answer* as JSON; a `msgspec.Raw` in it is JSON already."""
    return encoded_response(status, msgspec.json.encode(answer), headers=headers)


def encoded_response(status: int, body: bytes, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return *body*, which is JSON."""
    return web.Response(
        status=status, body=body, content_type="application/json", headers={**COMMON_HEADERS, **(headers or {})}
    )


def error_response(status: int, message: str, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an error for people."""
    return json_response(status, {"error": message}, headers=headers)
