"""The table of causes: what can be wrong, how bad it is, what to do, and which alerts tell it. Pure.

The status page, `/fleet` and `check` show its words, and docs/monitoring.md has it as a table. A test holds the alerts
of deploy/prometheus to it (tests/repository/test_causes.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from simplu_worker.vocabulary import HoldReason, ProblemCause, Severity

ALERTS_PAGE: Final = "docs/monitoring.md"
HOLDS: Final = "docs/holding.md#holding"
CRITICAL, WARNING = Severity.CRITICAL, Severity.WARNING


class Cause(NamedTuple):
    """What is wrong, how bad that is, and what to do.

    *alerts* tell it to people who do not look; the section about the first one has the rest, unless *page* is another.
    """

    severity: Severity
    text: str
    advice: str
    alerts: tuple[str, ...] = ()
    page: str | None = None

    @property
    def runbook(self) -> str:
        """The page of the repository with all of it, and its heading."""
        return self.page or f"{ALERTS_PAGE}#{self.alerts[0].lower()}"

    def members(self, site: str | None = None) -> dict[str, str]:
        """Return what to do as JSON members; the page is a link where *site*, that of the documentation, is known."""
        return {"advice": self.advice, "runbook": self.runbook if site is None else page_url(site, self.runbook)}


CAUSES: Final[dict[ProblemCause, Cause]] = {
    ProblemCause.NEAR_RETENTION: Cause(
        CRITICAL,
        "Operations are lost soon",
        "Raise the stream's retention first, then remove the cause for which they wait: over half of the retention has "
        "passed.",
        ("NearRetention",),
        "docs/runbook/stream-near-retention.md",
    ),
    ProblemCause.RECORDS_LOST: Cause(
        CRITICAL,
        "Records may have left the stream unread",
        "Raise the stream's retention, and have the producers send again: `stream_shard.records_expired` in the log "
        "names the stream shard.",
        ("StreamRecordsLost",),
    ),
    ProblemCause.OUTAGE: Cause(
        CRITICAL,
        "Several dependencies fail at once",
        "Look first at what they share: network, DNS, credentials. The other problems may follow from that.",
        page="docs/operating.md#health",
    ),
    ProblemCause.CREDENTIALS_FAILING: Cause(
        CRITICAL,
        "AWS credentials are missing or have expired",
        "Renew them at their source, which `simplu-worker check` names. Do not restart replicas.",
        ("NotReady",),
        "docs/aws.md#credentials",
    ),
    ProblemCause.NOT_READY: Cause(
        CRITICAL, "This replica does no work", "Remove the cause that is named.", ("NotReady",)
    ),
    ProblemCause.SHARD_LOST: Cause(
        CRITICAL,
        "Postgres shard takes no operations",
        "See why the shard does not answer, or what it refuses. Its operations wait; those of other shards do not wait "
        "for it.",
        ("ShardLost",),
    ),
    ProblemCause.TENANT_SPLIT: Cause(
        CRITICAL,
        "Tenants have operations on two Postgres shards",
        "Stop the producers of these tenants first; `tenant.split` in the log names them.",
        ("TenantSplit",),
        "docs/runbook/tenant-split.md",
    ),
    ProblemCause.STREAM_SHARD_UNREAD: Cause(
        CRITICAL,
        "Stream shard without an owner",
        "Look at the lease table and at DynamoDB: nobody reads the stream shard.",
        ("StreamShardUnread",),
    ),
    ProblemCause.REPLICA_SILENT: Cause(
        CRITICAL,
        "Leases are not renewed",
        "See whether the replica runs and reaches DynamoDB. What is shown of its stream shards is old.",
        ("StreamShardUnread",),
    ),
    ProblemCause.STREAM_FAILING: Cause(
        CRITICAL,
        "Stream cannot be read",
        "Look at Kinesis, the network and the permissions. More replicas do not help.",
        ("NotReady", "StreamLagHigh"),
    ),
    ProblemCause.QUEUE_FAILING: Cause(
        CRITICAL, "Queue does not answer", "Look at SQS and its permissions.", ("QueueUnreachable",)
    ),
    ProblemCause.CONTROL_BLOCKED: Cause(
        CRITICAL,
        "Control messages wait for a person",
        "Correct the cause that `control.blocked` in the log names; do not send them again.",
        ("ControlMessagesBlocked",),
    ),
    ProblemCause.CITRUS_FAILING: Cause(
        CRITICAL,
        "Citrus does not answer",
        "Look at Citrus, the network and the key. Do not restart replicas.",
        ("CitrusDown",),
    ),
    ProblemCause.REPLICA_UNABLE: Cause(
        WARNING,
        "Replica that can do nothing",
        "Compare its settings, certificates and network with those of the others, which do its work meanwhile.",
        page="docs/operating.md#a-replica-that-can-do-nothing",
    ),
    ProblemCause.CLOCK_APART: Cause(
        WARNING, "Clock of a replica is off", "Set the clock of its machine by NTP.", ("ClocksApart",)
    ),
    ProblemCause.STREAM_LAG: Cause(
        WARNING,
        "Stream read late",
        "See what the stream shard waits for; add replicas if their CPU is busy.",
        ("StreamLagHigh",),
    ),
    ProblemCause.INTERNAL_ERROR: Cause(
        WARNING,
        "Error inside the worker",
        "Report the log event `loop.failed`. The worker tries again by itself; nothing is skipped.",
        ("InternalErrors",),
    ),
    ProblemCause.MOVE_FAILED: Cause(
        WARNING,
        "Move stopped",
        "Repeat the command that moved the tenant, or take the move back: "
        "`simplu-worker tenants rollback BUSINESS LOCATION --apply`.",
        ("MoveStandsStill",),
    ),
    ProblemCause.TARGET_HELD: Cause(WARNING, "Held", "See why it waits.", ("TargetsHeldLong",), HOLDS),
    ProblemCause.SHARD_DEGRADED: Cause(
        WARNING,
        "Postgres shard with a problem",
        "The shard works. Remove the cause that is named.",
        ("ShardNearlyFull", "ShardConnectionsNearlyUsed", "ShardReplicationLagging", "ShardsSlow", "ClocksApart"),
        "docs/shards.md#probes-of-shards",
    ),
    ProblemCause.REPLICA_GONE: Cause(
        WARNING,
        "Replica gone",
        "Other replicas read its stream shards. See why it ended without a drain: exit status, memory, machine.",
        page="docs/monitoring.md#workerabsent",
    ),
    ProblemCause.CACHE_FAILING: Cause(
        WARNING,
        "Redis does not answer",
        "Look at Redis: its readers may see old entries until it is back.",
        ("CacheUnreachable",),
    ),
    ProblemCause.CERTIFICATE_EXPIRES: Cause(
        WARNING,
        "Certificate of the worker has expired, or does in three days",
        "Renew the file of HTTP_TLS_CERT_FILE; the worker reads it again by itself.",
        ("CertificateExpires",),
    ),
    ProblemCause.FEED_STOPPED: Cause(
        WARNING,
        "Feed stopped",
        "Correct the receiver, then let the feed go on: `simplu-worker feed skip`.",
        ("FeedStopped",),
    ),
    ProblemCause.FEED_BEHIND: Cause(
        WARNING,
        "Feed behind",
        "See what the destination answers. Its events wait in the log of the shards; no other destination waits.",
        ("FeedBehind",),
    ),
    ProblemCause.DEAD_LETTERS: Cause(
        WARNING,
        "Dead letters in the last hour",
        "Look at them: correct the producer or the cause, then replay or discard them.",
        ("DeadLetters",),
    ),
}


def _held(advice: str, page: str = HOLDS, *, severity: Severity = WARNING, alert: str = "TargetsHeldLong") -> Cause:
    return Cause(severity, CAUSES[ProblemCause.TARGET_HELD].text, advice, (alert,), page)


HELD: Final[dict[str, Cause]] = {  # what is held for a reason
    HoldReason.UNREGISTERED: _held("Register the tenant with `simplu-worker tenants provision`."),
    HoldReason.NOT_HERE: _held("Apply its creation with `simplu-worker tenants provision`."),
    HoldReason.INACTIVE: _held("The shard manager marks the shard inactive: activate it there."),
    HoldReason.MOVING: _held(
        "Wait for the move, or take it back: `simplu-worker tenants rollback BUSINESS LOCATION --apply`.",
        "docs/moving.md",
    ),
    HoldReason.SHARD_UNAVAILABLE: _held("See why the shard does not answer.", "docs/monitoring.md#shardlost"),
    HoldReason.HOME_UNKNOWN: _held(
        "No shard that answers has the tenant: see why another one does not.",
        "docs/shards.md#new-tenants-beside-a-lost-shard",
    ),
    HoldReason.FAILING: _held(
        "Wait: after four tries the operation is a dead letter. Where its shard refuses all, remove what refuses, as "
        "`shard.refusing` in the log names it: the operations of many tenants wait for an hour.",
        "docs/holding.md#operations-that-fail-on-a-working-shard",
    ),
    HoldReason.LOCKED: _held("End the transaction on the shard that keeps rows of the tenant locked."),
    HoldReason.PAUSED: _held(
        "A person has paused it: wait, or `simplu-worker tenants resume BUSINESS LOCATION`.",
        "docs/holding.md#pausing-a-tenant",
    )._replace(alerts=()),
    HoldReason.RESHARD: _held("Remove the cause for which tenants wait in the parents of the stream shard."),
    HoldReason.TAKEN_OVER: _held("Wait: the operations are read again."),
    HoldReason.BACKFILL: _held(
        "Wait: the stream is read again for the shard.", "docs/failover.md#what-the-new-primary-lacks"
    ),
    HoldReason.INTERNAL_ERROR: _held(
        "A defect of the worker: it tries again by itself. See the log event `loop.failed`, and report it.",
        "docs/monitoring.md#internalerrors",
        alert="InternalErrors",
    ),
    HoldReason.OVER_SHARE: _held(
        "After an outage, wait. Else it sends more than the shard takes: talk to its producer, change its weight, or "
        "move the tenant.",
        "docs/holding.md#tenants-over-their-share",
        alert="TenantOverShare",
    ),
    HoldReason.GAP: _held(
        "Raise the stream's retention first, then decide.",
        "docs/runbook/shard-held-for-gap.md",
        severity=CRITICAL,
        alert="ShardHeldForGap",
    ),
}


def cause_of(cause: ProblemCause, reason: str | None) -> Cause:
    """Return the words about a cause; with the *reason* of a hold those about that one, where it is known."""
    return HELD.get(reason or "", CAUSES[cause])


def advice_members(reason: str, site: str | None = None) -> dict[str, str]:
    """Return the members of a held target that name what to do; none for an unknown reason."""
    held = HELD.get(reason)
    return {} if held is None else held.members(site)


def page_url(site: str, page: str) -> str:
    """Return the address of a page of the repository, such as `docs/moving.md#the-end`, on the site at *site*."""
    path, hash_sign, heading = page.removeprefix("docs/").partition("#")
    return f"{site}/{path.removesuffix('.md')}.html{hash_sign}{heading}"
