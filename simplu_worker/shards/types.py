"""The types between the consumers and the shards: positions, results and errors. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypeAlias

import msgspec

from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.operations.operation import Origin, tenant_id_of
from simplu_worker.vocabulary import Absence

UUID_LENGTH: Final = 36  # as text
VERSION_AT: Final = 14  # the index of the version in it
HOMELESS: Final = (Absence.UNREGISTERED, Absence.NOT_HERE)


class ShardUnavailableError(RetryableError):
    """The shard cannot be used now; *shard_id* if the shard itself does not answer, as a probe will tell."""

    def __init__(self, message: str, *, shard_id: str | None = None) -> None:
        super().__init__(message)
        self.shard_id = shard_id


class HomeUnknownError(ShardUnavailableError):
    """The named shard has no row of the tenant, and another possible home does not answer."""


class TenantPausedError(RetryableError):
    """A person has paused the tenant: its operations wait, and nothing else."""


PAUSE_MAX_S: Final = 14 * 86_400.0  # SQS keeps no message for longer
WEIGHT_MIN, WEIGHT_MAX = 0.1, 10.0
RATE_MIN, RATE_MAX = 1e-3, 1e12  # of a limit: what an operation takes of a bucket is a time that the shard can add


class TenantControls(msgspec.Struct, frozen=True):
    """What a person sets for a tenant, or for all locations of a business. None leaves it.

    A pause is in seconds from now; it is none for 0, and so are the limits.
    """

    pause_s: float | None = None
    weight: float | None = None
    operations_per_s: float | None = None
    bytes_per_s: float | None = None

    @property
    def action(self) -> str:
        """The name of what sets it, for the log."""
        if self.pause_s is not None:
            return "pause_tenant" if self.pause_s else "resume_tenant"
        return "limit_tenant" if self.weight is None else "weigh_tenant"


class PositionChangedError(RetryableError):
    """The row has another fencing token than its reader left: the reader of each of *claims* must read it."""

    def __init__(self, message: str, *, claims: Sequence[PositionClaim] = ()) -> None:
        super().__init__(message)
        self.claims = claims


class UnknownBusinessTypeError(RetryableError):
    """A shard lacks a business type, which `types apply` may bring. *known* are types that it has."""

    def __init__(self, business_type: str, *, shard_id: str, known: Sequence[str]) -> None:
        self.given_up = (
            f"businessType: expected one of {', '.join(known) or 'none'}, which shard {shard_id} has, "
            f"got {business_type!r}"
        )
        super().__init__(f"{self.given_up}; write the type with `simplu-worker types apply`")


class TenantNotMadeError(WorkerError):
    """A tenant could not be provisioned at its first use; its operations stay held."""


class FailedOnShardError(Exception):
    """An unforeseen error, of the type *error*, of the work for one tenant on a known shard."""

    def __init__(self, error: str, *, shard_id: str, tenant_id: str) -> None:
        super().__init__(f"{error} in the work for a tenant on shard {shard_id}")
        self.error = error
        self.shard_id = shard_id
        self.tenant_id = tenant_id


class RefusedOnShardError(FailedOnShardError, WorkerError):
    """A statement of the work for one tenant failed on a healthy shard by *error*, as by a trigger of its owner."""


class ShardNotAllowedError(RetryableError):
    """The named shard may not be used until a person corrects its address."""


class CitrusDeniedError(RetryableError):
    """Citrus refuses the API key (401 or 403)."""


class StreamPosition(msgspec.Struct, frozen=True):
    """The content of a row of `stream_positions` (ADR 0004). Positions are text, as in the row.

    *held* are targets (`TenantSet.encode`). *fencing_token* is that of the row as read; empty in a content to write.
    *gap_from* is the `pending_from` to which the stream does not reach back, *is_gap_accepted* that a person accepted
    that. Nothing that arrived before *read_up_to* is pending, but for *held*.
    """

    pending_from: str
    pending_since: datetime | None = None
    parents_done: bool = False
    fencing_token: str = ""
    read_to: str | None = None
    held: tuple[str, ...] = ()
    gap_from: str | None = None
    is_gap_accepted: bool = False
    read_up_to: datetime | None = None

    @property
    def has_gap(self) -> bool:
        """Whether the stream was found not to reach back to the position, accepted or not."""
        return self.gap_from == self.pending_from

    @property
    def has_open_gap(self) -> bool:
        """Whether nothing may be written until a person accepts the gap."""
        return self.has_gap and not self.is_gap_accepted

    @property
    def written_at(self) -> datetime | None:
        """When a reader wrote the content, by its clock; None if the token does not contain a time."""
        return token_time(self.fencing_token)


def token_time(token: str) -> datetime | None:
    """Return the time in a fencing token, a UUID of version 7 (RFC 9562); None in any other text."""
    if len(token) != UUID_LENGTH or token[VERSION_AT] != "7":
        return None
    return datetime.fromtimestamp(int(token[:8] + token[9:13], 16) / 1000, UTC)


class StoredPositions(msgspec.Struct, frozen=True):
    """One shard's rows of some stream shards, by stream shard, and when its first tenant was made.

    *move_token* changes with each move to the shard, the last of which was *last_move_age_s* ago. *is_unchanged*: the
    row of the asking reader had a token of that reader, so no write to it is lost.
    """

    rows: dict[str, StreamPosition]
    first_tenant_at: datetime | None
    last_move_age_s: float | None = None
    move_token: str | None = None
    is_unchanged: bool = False


class StreamShards(msgspec.Struct, frozen=True):
    """Some stream shards of one stream, by their ids."""

    stream: str
    ids: tuple[str, ...]


ShardPositionRows: TypeAlias = Mapping[str, StreamPosition]
"""The rows of one shard by stream shard, as far as it has any."""


class PositionMerge(msgspec.Struct, frozen=True):
    """How a row of `stream_positions` got the *token* when a tenant came to its shard from *source_shard_id*."""

    token: str
    former_token: str
    source_shard_id: str
    carried_token: str


class Rejection(msgspec.Struct, frozen=True):
    """A record that is no operation, and has the ids of its tenant and its request. *error* does not quote it.

    *business_id* tells pairs of ids with the id *tenant_id* apart.
    """

    tenant_id: str
    business_id: str
    request_id: str
    reason: str
    error: str
    origin: Origin


class PositionClaim(msgspec.Struct):
    """The *position* that a reader writes into its row with the next batch, and the tokens that the row may have.

    The first token is that of the last known outcome; others are of attempts with an unknown one. Without tokens the
    reader found no row: the shard makes it only if its *move_token* is the one given, since a tenant moved there in
    between may lack operations. *written* gets each token that is committed.
    """

    stream: str
    stream_shard_id: str
    position: StreamPosition = StreamPosition("")
    move_token: str | None = None
    fencing_tokens: list[str] = []
    as_of: datetime | None = None
    written: deque[str] = msgspec.field(default_factory=deque)


class ProvisionRequest(msgspec.Struct, frozen=True):
    """A tenant to provision, as a `SHARD_CREATION` or a person asks for it."""

    business_id: str
    location_id: str
    business_type: str
    requested_at: datetime

    @property
    def tenant_id(self) -> str:
        """The tenant's id."""
        return tenant_id_of(self.business_id, self.location_id)


class ProvisionResult(StrEnum):
    """The result of a `ProvisionRequest`."""

    PROVISIONED = "provisioned"
    EXISTED = "existed"
    RESTORED = "restored"  # its destruction was pending, and is cancelled
    STALE = "stale"  # a newer control message was applied to the tenant before


ProvisionAnswer: TypeAlias = ProvisionResult | Exception


class DestructionResult(StrEnum):
    """The result of a destruction."""

    DESTROYING = "destroying"  # from now on; the grace time begins
    EXISTED = "existed"  # the tenant was being destroyed already
    STALE = "stale"  # a newer control message was applied to the tenant before
    UNKNOWN = "unknown"  # no shard has the tenant


class ResourceRename(msgspec.Struct, frozen=True):
    """A resource to rename; *additional_data* is JSON to merge into it."""

    business_id: str
    location_id: str
    resource_type: str
    old_resource_id: str
    new_resource_id: str
    additional_data: str | None
    requested_at: datetime


class AdminAccount(msgspec.Struct, frozen=True):
    """The first administrator of a tenant, to create."""

    business_id: str
    location_id: str
    business_type: str
    admin_email: str
    admin_user_id: str
    requested_at: datetime

    def __repr__(self) -> str:
        """Return the fields without personal data."""
        return f"AdminAccount({self.business_id!r}, {self.location_id!r})"


class ChangeResult(StrEnum):
    """The result of a change of a tenant's resources."""

    APPLIED = "applied"
    EXISTED = "existed"  # the change was applied before
    TENANT_DESTROYED = "tenant_destroyed"
    UNKNOWN_TENANT = "unknown_tenant"  # no shard has the tenant; the tenant may still come
    MISSING = "missing"  # there is no such resource; the resource may still come
