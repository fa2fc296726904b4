"""Tell from an answer of AWS that this machine's clock is wrong: AWS then refuses every signature. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from simplu_worker.timing.clock_agreement import parse_http_date

# AWS accepts signatures for 5 minutes. API references, "Common errors"; STS names it as SQS does.
SIGNATURE_CODES: Final = frozenset(
    {"InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch"}
)
SKEW_MIN_S: Final = 240.0  # the answer came some seconds later


def clock_problem(response: Mapping[str, Any], *, now: datetime) -> str | None:
    """Return by how much this machine's clock is wrong, if that is why AWS refused a request; else None."""
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    theirs = parse_http_date(date)
    if response.get("Error", {}).get("Code") not in SIGNATURE_CODES or theirs is None:
        return None
    if abs(skew_s := (theirs - now).total_seconds()) < SKEW_MIN_S:
        return None
    side = "behind" if skew_s > 0 else "ahead of"
    return f"the clock of this machine is {abs(skew_s):.0f} s {side} that of AWS: set it"
