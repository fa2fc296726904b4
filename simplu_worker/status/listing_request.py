"""Read the query of `GET /operations` (docs/outcomes.md). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar

from simplu_worker.operations.json_record import parse_timestamp
from simplu_worker.operations.operation import ID_MAX, is_id
from simplu_worker.shards.listing import InvalidRequestError, ListRequest, check_request, decode_cursor
from simplu_worker.status.request_bodies import read_query
from simplu_worker.vocabulary import Failure, OperationStatus

LIMIT_DIGITS_MAX: Final = 6

Choice = TypeVar("Choice", bound=StrEnum)


class OperationListQuery(NamedTuple):
    """A tenant, and the request for a page of its operations."""

    business_id: str
    location_id: str
    request: ListRequest


def parse_listing_request(pairs: Iterable[tuple[str, str]]) -> OperationListQuery:
    """Return the request of a query; an empty value counts as absent. Raises `ValueError` with an error for people."""
    given = read_query(pairs, [*_TENANT, *_PARSERS])
    for name in _TENANT:
        if not is_id(given.get(name, "")):
            raise ValueError(f"{name}: expected 1 to {ID_MAX} characters of UTF-8, without U+0000")
    members: dict[str, Any] = {}
    for name, (member, parse) in _PARSERS.items():
        if name in given:
            try:
                members[member] = parse(given[name])
            except ValueError as exc:
                raise ValueError(f"{name}: {exc}") from None
    try:
        request = check_request(ListRequest(**members))
    except InvalidRequestError as exc:
        names = {member: name for name, (member, _) in _PARSERS.items()}
        raise ValueError(f"{names[exc.member]}: {exc.problem}") from None
    return OperationListQuery(given["businessId"], given["locationId"], request)


def _parse_limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= LIMIT_DIGITS_MAX):
        raise ValueError("expected a number of operations, got another text")
    return int(text)


def _one_of(choices: type[Choice]) -> Callable[[str], Choice]:
    def parse(text: str) -> Choice:
        try:
            return choices(text)
        except ValueError:
            raise ValueError(f"expected {' or '.join(choices)}, got another text") from None

    return parse


_TENANT: Final = ("businessId", "locationId")
_PARSERS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "resourceType": ("resource_type", str),
    "resourceId": ("resource_id", str),
    "since": ("since", parse_timestamp),
    "until": ("until", parse_timestamp),
    "status": ("status", _one_of(OperationStatus)),
    "error": ("error", _one_of(Failure)),
    "limit": ("limit", _parse_limit),
    "after": ("after", decode_cursor),
}
