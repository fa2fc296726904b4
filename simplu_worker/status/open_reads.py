"""Reduce views to counts and states, for requests without a token where `API_OPEN_READS` allows them. Pure.

A view has texts of all kinds: errors, addresses, names of tenants. So texts are shown by a list of members, and states
by a list of words; a new member of a view is hidden until it is listed here.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final

# Names that labels of the metrics show as well, which need no token either; and times.
SHOWN_TEXTS: Final = frozenset({"kind", "lastCheckAt", "name", "queue", "shardId", "streamShard", "version"})
STATE_MEMBERS: Final = frozenset({"ready", "reason", "role", "state", "step", "citrus"})
STATES: Final = frozenset(
    [
        *(
            "starting",
            "running",
            "waiting",
            "draining",
            "opening",
            "polling",
            "reading",
            "ended",
            "elsewhere",
            "unowned",
        ),
        *(
            "released",
            "waits for memory",
            "held",
            "ready",
            "catching up",
            "ok",
            "unknown",
            "healthy",
            "degraded",
            "lost",
        ),
        *("primary", "standby", "read-only"),
        *("open", "committed", "undoing", "cleaning"),
        *(
            "shard_unavailable",
            "unregistered",
            "not_here",
            "inactive",
            "failing",
            "reshard",
            "taken_over",
            "refill",
            "gap",
        ),
    ]
)
OTHER_STATE: Final = "other"  # a state with a text of its own, such as an error
HIDDEN_MEMBER: Final = "recentErrors"

_HOST: Final = re.compile(r"(?P<name>\[[^\]]*\]|[^:\[\]]*)(:\d*)?")


def counts_and_states(view: Any) -> Any:
    """Return *view*, a JSON value, with its numbers, truth values, states and names, and without any other text."""
    match view:
        case dict():
            shown = {name: _member(name, value) for name, value in view.items() if name != HIDDEN_MEMBER}
            return {name: value for name, value in shown.items() if value is not None}
        case list() | tuple():
            return [item for item in map(counts_and_states, view) if item is not None]
        case bool() | int() | float():
            return view
        case _:
            return None


def _member(name: str, value: Any) -> Any:
    """Return the shown part of a member; None for nothing."""
    if not isinstance(value, str):
        return counts_and_states(value)
    if name in STATE_MEMBERS:
        return str(value) if value in STATES else OTHER_STATE
    return str(value) if name in SHOWN_TEXTS else None


def is_own_host(host: str, http_host: str) -> bool:
    """Return whether *host*, the `Host` of a request, is *http_host*, an IP address or localhost.

    A page of another site may have a name of its own lead here (DNS rebinding); a browser then sends that name.
    """
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found["name"].strip("[]").lower()
    if name in {"localhost", http_host.lower()}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
