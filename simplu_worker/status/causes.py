"""The words about each problem and each hold: what is wrong, how bad that is, what to do. They are in `causes.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Final

import msgspec

from simplu_worker.status.words import ProblemCause, Severity

ALERTS_PAGE: Final = "docs/monitoring.md"


class Cause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is wrong, how bad that is, and what to do.

    *alerts* tell it; the section of the first one has the rest, unless *page* does.
    """

    text: str
    advice: str
    severity: Severity = Severity.WARNING
    alerts: tuple[str, ...] = ()
    page: str | None = None

    @property
    def runbook(self) -> str:
        """The page of the repository, and its heading."""
        return self.page or f"{ALERTS_PAGE}#{self.alerts[0].lower()}"

    def members(self, site: str | None = None) -> dict[str, str]:
        """Return what to do; the page is a link where *site* is known."""
        page, hash_sign, heading = self.runbook.partition("#")
        address = f"{site}/{page.removeprefix('docs/').removesuffix('.md')}.html{hash_sign}{heading}"
        return {"advice": self.advice, "runbook": self.runbook if site is None else address}


class _Hold(Cause, frozen=True):
    text: str = "Held"
    advice: str = ""
    alerts: tuple[str, ...] = ("TargetsHeldLong",)
    page: str | None = "docs/holding.md#holding"


class _Words(msgspec.Struct):
    causes: dict[ProblemCause, Cause]
    held: dict[str, _Hold]


_WORDS: Final = msgspec.toml.decode(resources.files(__package__).joinpath("causes.toml").read_bytes(), type=_Words)
CAUSES: Final = _WORDS.causes
HELD: Final[Mapping[str, Cause]] = _WORDS.held  # what is held for a reason


def cause_of(cause: ProblemCause, reason: str | None) -> Cause:
    """Return the words about a cause, with the *reason* of a hold about that."""
    return HELD.get(reason or "", CAUSES[cause])


def advice_members(reason: str, site: str | None = None) -> dict[str, str]:
    """Return what to do about a hold; nothing for an unknown reason."""
    held = HELD.get(reason)
    return {} if held is None else held.members(site)
