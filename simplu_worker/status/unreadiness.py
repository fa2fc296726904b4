"""Why a replica is not ready: a word for all callers, and a text for operators. Pure."""

from __future__ import annotations

from typing import NamedTuple

from simplu_worker.vocabulary import UnreadyReason


class Unreadiness(NamedTuple):
    """A reason, and what a person should know beside it: *text* may be an error of a dependency."""

    reason: UnreadyReason
    text: str | None = None
