"""Rows of tenants and shards as JSON members, for HTTP and commands. Pure.

Read the query of `GET /operations` (docs/outcomes.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar

from simplu_worker.bulkheads import Trouble
from simplu_worker.feed.types import DestinationView
from simplu_worker.operations.json_record import parse_timestamp
from simplu_worker.operations.operation import ID_MAX, is_id
from simplu_worker.shards.health.assessment import health_view
from simplu_worker.shards.health.prober import InspectedShard
from simplu_worker.shards.listing import InvalidRequestError, ListRequest, check_request, decode_cursor
from simplu_worker.shards.lookups import RejectedRequest
from simplu_worker.shards.types import TenantControls
from simplu_worker.status.answers import Controls, FeedDestination, FeedState, Json, Refusal, Tenant
from simplu_worker.status.words import BadRequestError, UnreadyReason
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.vocabulary import Absence, Failure, OperationStatus, TenantState


def trouble_view(trouble: Trouble) -> dict[str, Any]:
    """Return the unforeseen errors of a target as JSON members."""
    return {
        "target": trouble.target,
        "about": trouble.name,
        "loop": trouble.loop,
        "error": trouble.error,
        "count": trouble.count,
        "since": trouble.since.isoformat(timespec="seconds"),
        "at": trouble.last_at.isoformat(timespec="seconds"),
    }


def feed_state(published_count: int, destinations: Iterable[DestinationView]) -> FeedState:
    """Return the feed: the shards published here, and all destinations."""
    return FeedState(
        published_count,
        [
            FeedDestination(
                name=one.name,
                lag_seconds=round(one.lag_s, 1),
                shards=one.shard_count,
                waiting_shards=one.waiting_count,
                stopped_shards=list(one.stopped_shards),
                error=None if one.error is None else scrub_text(one.error),
            )
            for one in destinations
        ],
    )


def tenant_view(shard_id: str, row: Mapping[str, Any]) -> Json:
    """Return a tenant's row as JSON members."""
    return Tenant(
        business_id=row["business_id"],
        location_id=row["location_id"],
        business_type=row["business_type"],
        state=row["state"],
        shard_id=shard_id,
        moved_to=row["moved_to"],
        created_at=row["created_at"],
        paused_until=row["paused_until"],
        weight=row["weight"],
        resources=row.get("resource_count"),
        operations=row.get("operation_count"),
    ).json()


def refused_view(found: RejectedRequest | Absence | None) -> Json | None:
    """Return the last refused control message of a tenant, if any."""
    if not isinstance(found, RejectedRequest):
        return None
    return Refusal(
        reason=found.reason,
        error=found.error,
        at=found.rejected_at,
        queue=found.source,
        message_id=found.message_id,
        dead_letter_queue=found.dead_letter_queue,
    ).json()


def controls_view(shard_id: str, row: Mapping[str, Any]) -> Json:
    """Return what people have set for a tenant as JSON members."""
    return Controls(shard_id, row["paused_until"], row["weight"]).json()


def controls_action(controls: TenantControls) -> str:
    """Return the name of the action in the log of operators."""
    if controls.pause_s is None:
        return "weigh_tenant"
    return "pause_tenant" if controls.pause_s else "resume_tenant"


def controls_members(controls: TenantControls) -> dict[str, float]:
    """Return what is set, as the log of operators has it."""
    members = {"seconds": controls.pause_s, "weight": controls.weight}
    return {name: value for name, value in members.items() if value}


def controls_error(found: TenantState | Absence) -> str:
    """Return the error for a tenant for which nothing was set."""
    remedy = "; try again once its move has ended" if found is Absence.MOVING else ""
    return f"expected an active tenant, got one that is {found}{remedy}"


def shard_view(shard: InspectedShard) -> dict[str, Any]:
    """Return a known shard as JSON members."""
    address = shard.address
    return {
        "shardId": address.shard_id,
        "place": address.place,
        "isActive": address.is_active,
        "businesses": address.business_count,
        "maxBusinesses": address.business_max,
        "lastHealthCheck": address.last_health_check,
    } | health_view(shard.health)


class Unreadiness(NamedTuple):
    """A reason for all callers, and a *text* for operators."""

    reason: UnreadyReason
    text: str | None = None


LIMIT_DIGITS_MAX: Final = 6

Choice = TypeVar("Choice", bound=StrEnum)


class OperationListQuery(NamedTuple):
    """A tenant, and the request for a page of its operations."""

    business_id: str
    location_id: str
    request: ListRequest


def parse_listing_request(pairs: Iterable[tuple[str, str]]) -> OperationListQuery:
    """Return the request of a query; an empty value counts as absent. Raises `BadRequestError`."""
    from simplu_worker.status.request_bodies import read_query  # noqa: PLC0415  # aiohttp, which commands do without

    given = read_query(pairs, [*_TENANT, *_PARSERS])
    for name in _TENANT:
        if not is_id(given.get(name, "")):
            raise BadRequestError(f"{name}: expected 1 to {ID_MAX} characters of UTF-8, without U+0000")
    members: dict[str, Any] = {}
    for name, (member, parse) in _PARSERS.items():
        if name in given:
            try:
                members[member] = parse(given[name])
            except ValueError as exc:
                raise BadRequestError(f"{name}: {exc}") from None
    try:
        request = check_request(ListRequest(**members))
    except InvalidRequestError as exc:
        names = {member: name for name, (member, _) in _PARSERS.items()}
        raise BadRequestError(f"{names[exc.member]}: {exc.problem}") from None
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
