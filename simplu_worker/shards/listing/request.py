"""The request for a page of a tenant's operations, and its cursor. Pure."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec

from simplu_worker.operations.operation import is_storable
from simplu_worker.vocabulary import Failure, OperationStatus

DEFAULT_LIMIT: Final = 50
LIMIT_MAX: Final = 500  # operations on a page
TEXT_MAX: Final = 256  # characters of a filter: those of the longest id (docs/outcomes.md)
CURSOR_MAX: Final = 4000  # characters; a key of an index of Postgres has at most 2,704 bytes
CURSOR_VERSION: Final = 1
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
OLDEST: Final = datetime(1, 1, 1, tzinfo=UTC)
NEWEST: Final = datetime(9999, 12, 31, tzinfo=UTC)
INSTANT: Final = timedelta(microseconds=1)  # the resolution of times in Postgres, and here


class SearchPosition(msgspec.Struct, frozen=True):
    """The place in the log, newest first, after which a page begins.

    After it come the operations that were completed before *at*, and those of that time with a request id before
    *request_id*; all of that time if it is None. *is_large*: the tenant is known to have many operations.
    """

    at: datetime = NEWEST
    request_id: str | None = None
    is_large: bool = False

    def encode(self) -> str:
        """Return the position as a cursor, of characters that need no escape in a URL or a shell."""
        micros = (self.at - EPOCH) // INSTANT
        text = msgspec.json.encode((CURSOR_VERSION, micros, self.request_id, self.is_large))
        return base64.urlsafe_b64encode(text).decode().rstrip("=")


_cursor_decoder = msgspec.json.Decoder(tuple[Literal[1], int, str | None, bool])


def decode_cursor(text: str) -> SearchPosition:
    """Return the position of a cursor, which may be any text. Raises `ValueError`."""
    error = ValueError("expected the `next` of a page, unchanged, got another text; begin without it")
    if len(text) > CURSOR_MAX or not text.isascii():
        raise error
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        _, micros, request_id, is_large = _cursor_decoder.decode(decoded)
        at = EPOCH + micros * INSTANT
    except (binascii.Error, msgspec.MsgspecError, UnicodeDecodeError, OverflowError):
        raise error from None
    if not (OLDEST < at <= NEWEST and is_storable(request_id or "")):
        raise error
    position = SearchPosition(at, request_id, is_large)
    if position.encode() != text:
        raise error
    return position


class ListRequest(msgspec.Struct, frozen=True):
    """The operations to list, newest first: at most *limit* after *after* that are as each other member that is given.

    *since*, inclusive, and *until*, exclusive, are times of completion.
    """

    resource_type: str | None = None
    resource_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    status: OperationStatus | None = None
    error: Failure | None = None
    limit: int = DEFAULT_LIMIT
    after: SearchPosition = SearchPosition()

    @property
    def start(self) -> SearchPosition:
        """The position after which the page begins."""
        if self.until is None or self.until > self.after.at:
            return self.after
        return SearchPosition(max(self.until, OLDEST + INSTANT) - INSTANT, is_large=self.after.is_large)


class InvalidRequestError(ValueError):
    """A request that cannot be meant; *member* is the one at fault."""

    def __init__(self, member: str, problem: str) -> None:
        super().__init__(f"{member}: {problem}")
        self.member = member
        self.problem = problem


def check_request(request: ListRequest) -> ListRequest:
    """Return *request*. Raises `InvalidRequestError`."""
    if not 1 <= request.limit <= LIMIT_MAX:
        raise InvalidRequestError("limit", f"expected 1 to {LIMIT_MAX}, got {request.limit}")
    for member in ("resource_type", "resource_id"):
        text: str | None = getattr(request, member)
        if text is not None and not (1 <= len(text) <= TEXT_MAX and is_storable(text)):
            raise InvalidRequestError(member, f"expected 1 to {TEXT_MAX} characters of UTF-8, without U+0000")
    if request.since is not None and request.until is not None and request.since >= request.until:
        raise InvalidRequestError("since", "expected a time before `until`, got the same or a later one")
    if request.error is not None and request.status is OperationStatus.SUCCEEDED:
        raise InvalidRequestError("error", "expected the status `failed` with it, got `succeeded`")
    return request
