"""`GET /tap`: the operations of this replica as they are decided, as server-sent events (docs/outcomes.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable
from typing import Final

import msgspec

from simplu_worker.consumers.operation_taps import TAPS, OperationTaps, TapFilter
from simplu_worker.status.live.event_stream import ALIVE, ALIVE_EVERY_S, encode_event
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import wait_any
from simplu_worker.vocabulary import OperationKind, OperationOutcome

TAP_MAX_S: Final = 900.0
PARAMETERS: Final = {
    "businessId": "business_id",
    "locationId": "location_id",
    "resourceType": "resource_type",
    "operation": "kind",
    "outcome": "outcome",
    "content": "shows_content",
}


def parse_tap_query(pairs: Iterable[tuple[str, str]]) -> TapFilter:
    """Return the filter of the decoded *pairs* of a query; an empty value counts as absent.

    Raises ValueError with an error for people.
    """
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in PARAMETERS:
            raise ValueError(f"expected the parameters {', '.join(PARAMETERS)}, got another one")
        if value and given.setdefault(PARAMETERS[name], value) != value:
            raise ValueError(f"{name}: expected one value, got several")
    _require_word("operation", given.get("kind"), list(OperationKind))
    _require_word("outcome", given.get("outcome"), list(OperationOutcome))
    _require_word("content", given.get("shows_content"), ("true", "false"))
    if ("business_id" in given) != ("location_id" in given):
        raise ValueError("expected businessId and locationId together, or neither of them")
    shows_content = given.pop("shows_content", "") == "true"
    return TapFilter(**given, shows_content=shows_content)


async def tapped(
    chosen: TapFilter,
    closing: asyncio.Event,
    *,
    taps: OperationTaps = TAPS,
    alive_s: float = ALIVE_EVERY_S,
    tap_s: float = TAP_MAX_S,
) -> AsyncGenerator[bytes, None]:
    """Yield the decided operations that *chosen* matches, until *closing*, and at most for *tap_s*.

    An event `dropped` has the number of those that came faster than they were taken, so far. The tap is open from the
    first step on, and is closed with the generator.
    """
    tap = taps.add(chosen)
    ends_at, dropped_count = loop_time() + tap_s, 0
    try:
        yield ALIVE
        while not closing.is_set() and (left_s := ends_at - loop_time()) > 0:
            await wait_any(tap.has_events, closing, within_s=min(alive_s, left_s))
            events = b"".join(encode_event("operation", event) for event in tap.take())
            if tap.dropped_count > dropped_count:
                dropped_count = tap.dropped_count
                events += encode_event("dropped", msgspec.json.encode({"dropped": dropped_count}))
            yield events or ALIVE
    finally:
        taps.remove(tap)


def _require_word(name: str, value: str | None, words: Collection[str]) -> None:
    if value is not None and value not in words:
        raise ValueError(f"{name}: expected {' or '.join(words)}, got another text")
