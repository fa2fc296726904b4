"""The bodies of requests that act, and queries.

Responses: JSON, errors included, with common headers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
from aiohttp import web

from simplu_worker.operations.operation import ID_MAX
from simplu_worker.shards.types import PAUSE_MAX_S, WEIGHT_MAX, WEIGHT_MIN, TenantControls
from simplu_worker.status.words import BadRequestError
from simplu_worker.vocabulary import DeadLetterReason, Source

PAUSE_DEFAULT_S: Final = 4 * 3600.0
LETTERS_DEFAULT: Final = 1000
LETTERS_MAX: Final = 10_000  # in one answer
CHOSEN_MAX: Final = 1000  # of letters that a request names
MESSAGE_ID_MAX: Final = 100  # characters: SQS
NAME_SHOWN_MAX: Final = 40

MessageId: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MESSAGE_ID_MAX)]
Body = TypeVar("Body", bound=msgspec.Struct)


class RetryRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A target as `/status` shows it, or none for all."""

    target: str | None = None


class PauseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /tenants/…/pause`: for how many seconds."""

    seconds: Annotated[float, msgspec.Meta(gt=0, le=PAUSE_MAX_S)] = PAUSE_DEFAULT_S

    @property
    def controls(self) -> TenantControls:
        """What it sets."""
        return TenantControls(pause_s=self.seconds)


class ResumeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /tenants/…/resume`: empty."""

    @property
    def controls(self) -> TenantControls:
        """What it sets."""
        return TenantControls(pause_s=0.0)


class WeightRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /tenants/…/weight`."""

    weight: Annotated[float, msgspec.Meta(ge=WEIGHT_MIN, le=WEIGHT_MAX)]

    @property
    def controls(self) -> TenantControls:
        """What it sets."""
        return TenantControls(weight=self.weight)


ControlsRequest: TypeAlias = PauseRequest | ResumeRequest | WeightRequest


class LettersRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A filter of dead letters, and what to do.

    *since* is inclusive, *until* is not; by `failedAt`, without an offset in UTC.
    """

    reasons: tuple[DeadLetterReason, ...] = ()
    source: Source | None = None
    business_id: str | None = None
    location_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    message_ids: Annotated[tuple[MessageId, ...], msgspec.Meta(max_length=CHOSEN_MAX)] = ()
    limit: Annotated[int, msgspec.Meta(ge=1, le=LETTERS_MAX)] = LETTERS_DEFAULT
    records: bool = False
    newest: bool = False
    apply: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse half a tenant."""
        if (self.business_id is None) != (self.location_id is None):
            raise ValueError("expected businessId and locationId together, or neither of them")

    def in_utc(self) -> LettersRequest:
        """Return the request with offsets in its times."""
        return msgspec.structs.replace(self, since=_in_utc(self.since), until=_in_utc(self.until))


class EditRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A dead letter, the text in place of its record, and the new request id."""

    message_id: MessageId
    record: str
    request_id: Annotated[str, msgspec.Meta(min_length=1, max_length=ID_MAX)] | None = None
    apply: bool = False


def _in_utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


async def read_body(request: web.Request, kind: type[Body]) -> Body:
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


def read_query(pairs: Iterable[tuple[str, str]], names: Collection[str]) -> dict[str, str]:
    """Return the parameters of a query, out of *names*; an empty value counts as absent. Raises BadRequestError."""
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in names:
            raise BadRequestError(f"expected the parameters {', '.join(names)}, got {name[:NAME_SHOWN_MAX]!r}")
        if value and given.setdefault(name, value) != value:
            raise BadRequestError(f"{name}: expected one value, got several")
    return given


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


def busy_response() -> web.Response:
    """Return the answer where there are too many listeners."""
    return error_response(
        HTTPStatus.SERVICE_UNAVAILABLE, "too many listeners; repeat the request", headers={"Retry-After": "1"}
    )
