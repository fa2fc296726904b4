"""Unwrap a message from the envelope that SNS adds when raw delivery is off. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

_MARK: Final = '"Notification"'


def unwrap(body: str, attributes: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the message in *body* with its attributes; both unchanged when there is no envelope.

    An attribute of the SQS message itself overrides one of the envelope.
    """
    own = dict(attributes)
    if _MARK not in body:  # saves parsing most bodies
        return body, own
    try:
        envelope = json.loads(body)
    except (ValueError, RecursionError):
        return body, own  # the decoder of the message reports the error
    if not isinstance(envelope, dict) or envelope.get("Type") != "Notification":
        return body, own
    message = envelope.get("Message")
    if not isinstance(message, str):
        return body, own
    return message, _attributes_of(envelope.get("MessageAttributes")) | own


def _attributes_of(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    members = {name: member.get("Value") for name, member in value.items() if isinstance(member, dict)}
    return {name: text for name, text in members.items() if isinstance(text, str)}
