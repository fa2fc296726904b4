"""What to do about a held target, by the reason: a sentence, and the page with the rest. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from simplu_worker.vocabulary import HoldReason

TARGETS_HELD: Final = "docs/holding.md#holding"


class Advice(NamedTuple):
    """A sentence for people, and the page of the repository with all of it."""

    text: str
    runbook: str

    def members(self, site: str | None = None) -> dict[str, str]:
        """Return it as JSON members; the page is a link where *site*, that of the documentation, is known."""
        return {"advice": self.text, "runbook": self.runbook if site is None else page_url(site, self.runbook)}


BY_REASON: Final[dict[str, Advice]] = {
    HoldReason.UNREGISTERED: Advice("Register the tenant with `simplu-worker tenants provision`.", TARGETS_HELD),
    HoldReason.NOT_HERE: Advice("Apply its creation with `simplu-worker tenants provision`.", TARGETS_HELD),
    HoldReason.INACTIVE: Advice("The shard manager marks the shard inactive: activate it there.", TARGETS_HELD),
    HoldReason.MOVING: Advice(
        "Wait for the move, or take it back: `simplu-worker tenants rollback BUSINESS LOCATION --apply`.",
        "docs/moving.md",
    ),
    HoldReason.SHARD_UNAVAILABLE: Advice("See why the shard does not answer.", "docs/monitoring.md#shardlost"),
    HoldReason.FAILING: Advice("Wait: after four tries the operation is a dead letter.", TARGETS_HELD),
    HoldReason.LOCKED: Advice("End the transaction on the shard that keeps rows of the tenant locked.", TARGETS_HELD),
    HoldReason.PAUSED: Advice(
        "A person has paused it: wait, or `simplu-worker tenants resume BUSINESS LOCATION`.",
        "docs/holding.md#pausing-a-tenant",
    ),
    HoldReason.RESHARD: Advice(
        "Remove the cause for which tenants wait in the parents of the stream shard.", TARGETS_HELD
    ),
    HoldReason.TAKEN_OVER: Advice("Wait: the operations are read again.", TARGETS_HELD),
    HoldReason.BACKFILL: Advice(
        "Wait: the stream is read again for the shard.", "docs/failover.md#what-the-new-primary-lacks"
    ),
    HoldReason.INTERNAL_ERROR: Advice(
        "A defect of the worker: it tries again by itself. See the log event `loop.failed`, and report it.",
        "docs/monitoring.md#internalerrors",
    ),
    HoldReason.OVER_SHARE: Advice(
        "After an outage, wait. Else it sends more than the shard takes: talk to its producer, change its weight, or "
        "move the tenant.",
        "docs/holding.md#tenants-over-their-share",
    ),
    HoldReason.GAP: Advice("Raise the stream's retention first, then decide.", "docs/runbook/shard-held-for-gap.md"),
}


def advice_members(reason: str, site: str | None = None) -> dict[str, str]:
    """Return the members of a held target that name what to do; none for an unknown reason."""
    advice = BY_REASON.get(reason)
    return {} if advice is None else advice.members(site)


def page_url(site: str, page: str) -> str:
    """Return the address of a page of the repository, such as `docs/moving.md#the-end`, on the site at *site*."""
    path, hash_sign, heading = page.removeprefix("docs/").partition("#")
    return f"{site}/{path.removesuffix('.md')}.html{hash_sign}{heading}"
