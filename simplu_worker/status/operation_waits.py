"""Requests that wait until an operation is decided or held: one query a shard for all of them (docs/outcomes.md).

Read the query of `GET /operations` (docs/outcomes.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar

from simplu_worker.bulkheads import contain
from simplu_worker.errors import WorkerError
from simplu_worker.operations.json_record import parse_timestamp
from simplu_worker.operations.operation import ID_MAX, is_id, tenant_id_of
from simplu_worker.shards.listing import InvalidRequestError, ListRequest, check_request, decode_cursor
from simplu_worker.status.connection_order import Places
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import wait_any
from simplu_worker.vocabulary import Failure, OperationStatus, TargetKind

WAIT_MAX_S: Final = 20.0
WAITS_MAX: Final = 80  # of one replica
WAITS_OF_TOKEN_MAX: Final = 40
WAITS_OF_TENANT_MAX: Final = 20
LOOK_EVERY_S: Final = 0.2


class OperationWaits:
    """The waits of one replica; *is_decided* asks the tenant's shard, *is_held* tells what is in memory.

    Each wait looks for itself, so that a silent shard delays no other one's answer; but all look at the same moments,
    when *is_decided* can ask a shard for all of them.
    """

    def __init__(
        self,
        is_decided: Callable[[str, str, str], Awaitable[bool]],
        is_held: Callable[[str, str], bool],
        *,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._is_decided = is_decided
        self._is_held = is_held
        self._every_s = every_s
        self._of_tokens = Places(each_max=WAITS_OF_TOKEN_MAX, all_max=WAITS_MAX)
        self._of_tenants = Places(each_max=WAITS_OF_TENANT_MAX, all_max=WAITS_MAX)

    def __repr__(self) -> str:
        return f"OperationWaits({self._of_tokens}, {self._of_tenants})"

    async def wait(
        self, token: str, business_id: str, location_id: str, request_id: str, within_s: float, end: asyncio.Event
    ) -> bool:
        """Return once the operation is decided or held, *end* is set, or after *within_s*.

        False, at once: too many wait, in all, with *token*, or for the tenant.
        """
        tenant_id = tenant_id_of(business_id, location_id)
        if not self._of_tokens.take(token):
            return False
        if not self._of_tenants.take(tenant_id):
            self._of_tokens.free(token)
            return False
        try:
            async with asyncio.TaskGroup() as tasks:
                looking = tasks.create_task(
                    self._look(business_id, location_id, request_id, end), name="operation-wait"
                )
                await wait_any(end, within_s=within_s)
                looking.cancel()
        finally:
            self._of_tokens.free(token)
            self._of_tenants.free(tenant_id)
        return True

    async def _look(self, business_id: str, location_id: str, request_id: str, end: asyncio.Event) -> None:
        tenant_id = tenant_id_of(business_id, location_id)
        while not end.is_set():
            with contain(TargetKind.REPLICA, "waits", "waits"), contextlib.suppress(WorkerError):
                if self._is_held(business_id, location_id) or await self._is_decided(
                    tenant_id, business_id, request_id
                ):
                    end.set()
            await asyncio.sleep(self._every_s - loop_time() % self._every_s)


LIMIT_DIGITS_MAX: Final = 6
NAME_SHOWN_MAX: Final = 40

Choice = TypeVar("Choice", bound=StrEnum)


class OperationListQuery(NamedTuple):
    """A tenant, and the request for a page of its operations."""

    business_id: str
    location_id: str
    request: ListRequest


def parse_listing_request(pairs: Iterable[tuple[str, str]]) -> OperationListQuery:
    """Return the request of the decoded *pairs* of a query; an empty value counts as absent.

    Raises `ValueError` with an error for people.
    """
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in _PARSERS and name not in _TENANT:
            known = ", ".join([*_TENANT, *_PARSERS])
            raise ValueError(f"expected the parameters {known}, got {name[:NAME_SHOWN_MAX]!r}")
        if value and given.setdefault(name, value) != value:
            raise ValueError(f"{name}: expected one value, got several")
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
