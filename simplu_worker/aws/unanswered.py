"""Requests to AWS without an answer of the service, in words. Pure."""

from __future__ import annotations

from typing import Final

from botocore import exceptions as botocore_errors
from yarl import URL

from simplu_worker.network_errors import NO_ANSWER, NO_CONNECTION, network_cause

CA_SETTING: Final = "AWS_CA_BUNDLE"


def unanswered_text(exc: Exception) -> str:
    """Return the address, without credentials, and the cause; the text of *exc* if it is about no connection."""
    facts = getattr(exc, "kwargs", {})
    cause, address = facts.get("error"), facts.get("endpoint_url") or facts.get("proxy_url")
    if address is None:
        return str(exc) if cause is None else f"AWS: {network_cause(cause, ca_setting=CA_SETTING)}"
    place = URL(str(address)).with_user(None).with_query(None)
    if isinstance(exc, botocore_errors.ConnectTimeoutError):
        return f"{place}: {NO_CONNECTION}"
    if isinstance(exc, botocore_errors.ReadTimeoutError):
        return f"{place}: {NO_ANSWER}"
    if cause is None:
        return str(exc)
    return f"{place}: {network_cause(cause, ca_setting=CA_SETTING)}"
