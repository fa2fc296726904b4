"""Tell from an answer of AWS that this machine's clock is wrong: AWS then refuses every signature. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

# AWS accepts signatures for 5 minutes. API references, "Common errors"; STS names it as SQS does.
SIGNATURE_CODES: Final = frozenset(
    {"InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch"}
)
SKEW_MIN_S: Final = 240.0  # the answer came some seconds later


def clock_problem(response: Mapping[str, Any], *, now: datetime) -> str | None:
    """Return by how much this machine's clock is wrong, if that is why AWS refused a request; else None."""
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    skew_s = clock_skew_s(date, now=now)
    if response.get("Error", {}).get("Code") not in SIGNATURE_CODES or skew_s is None or abs(skew_s) < SKEW_MIN_S:
        return None
    side = "behind" if skew_s > 0 else "ahead of"
    return f"the clock of this machine is {abs(skew_s):.0f} s {side} that of AWS: set it"


def clock_skew_s(date: str, *, now: datetime) -> float | None:
    """Return how many seconds the clock that wrote the HTTP `Date` header *date* is ahead; None if it is invalid."""
    try:
        written = parsedate_to_datetime(date)
    except ValueError:
        return None
    return (written.replace(tzinfo=written.tzinfo or UTC) - now).total_seconds()
