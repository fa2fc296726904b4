"""The types that cross the line between the consumers and the shards: positions, results and errors. Pure.

The consumers import of `simplu_worker.shards` only this module and `gateway` (import-linter keeps it).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypeAlias

import msgspec

from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.operations.operation import tenant_id_of

UUID_LENGTH: Final = 36  # as text
VERSION_AT: Final = 14  # the index of the version in it


class ShardUnavailableError(RetryableError):
    """The shard cannot be used now: unreachable, starting, read-only, full, or not set up as expected.

    *shard_id* is set when the shard itself does not answer: then a probe of the shard shows when it answers again.
    """

    def __init__(self, message: str, *, shard_id: str | None = None) -> None:
        super().__init__(message)
        self.shard_id = shard_id


class HomeUnknownError(ShardUnavailableError):
    """The named shard has no row of the tenant, and another one on which the tenant may live does not answer."""


class TenantPausedError(RetryableError):
    """A person has paused the tenant: its operations wait, and nothing else."""


PAUSE_MAX_S: Final = 14 * 86_400.0  # SQS keeps no message for longer
WEIGHT_MIN, WEIGHT_MAX = 0.1, 10.0


class Lever(msgspec.Struct, frozen=True):
    """What a person sets for a tenant: a pause of *pause_s* seconds from now, 0 for none; a weight. None leaves it."""

    pause_s: float | None = None
    weight: float | None = None


class PositionChangedError(RetryableError):
    """The row has another fencing token than its reader left: the reader must read the row before it writes there.

    *claims* are those of the readers, of all that were in the transaction.
    """

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
    """A tenant without a shard could not be provisioned at its first use; its operations stay held."""


class FailedOnShardError(Exception):
    """An unforeseen error of the work for one tenant on a known shard, where it counts as a failure of that work.

    The error itself is the `__cause__`; *error* is its type.
    """

    def __init__(self, error: str, *, shard_id: str, tenant_id: str) -> None:
        super().__init__(f"{error} in the work for a tenant on shard {shard_id}")
        self.error = error
        self.shard_id = shard_id
        self.tenant_id = tenant_id


class RefusedOnShardError(FailedOnShardError, WorkerError):
    """A statement of the work for one tenant failed on a healthy shard, for example by a trigger of its owner.

    *error* is the server's error, in words with its code.
    """


class ShardNotAllowedError(RetryableError):
    """The named shard may not be used: a person has to correct its address or `DATABASE_ALLOWED_HOSTS`."""


class CitrusDeniedError(RetryableError):
    """Citrus refuses the API key (401 or 403): only a person can correct it, and the message is not at fault."""


class StreamPosition(msgspec.Struct, frozen=True):
    """The content of a row of `stream_positions` (ADR 0004). Positions are text, as in the row.

    *held* are targets (`TenantSet.encode`), none without *read_to*. *fencing_token* is that of the row as it was read;
    empty in a content to write, which gets a new one. *gap_from* is the `pending_from` to which the stream does not
    reach back; another position in the row ends the mark. *is_gap_accepted* means that a person accepted that.
    Nothing that arrived before *read_up_to* is pending, but for tenants in *held*; None where that is not known.
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
    """One shard's rows of some stream shards, by stream shard, and when the first tenant of the shard was made.

    *first_tenant_at* is None if the shard has no tenant, or was not asked. So is *last_move_age_s*, the seconds since
    the last tenant was moved to the shard, if none was. *move_token* changes with each such move; None if not asked
    for. *is_unchanged* means that the row of the asking reader had a token of that reader, before it was fenced: then
    no write to the row is lost.
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
    """How a row of `stream_positions` got the *token* when a tenant came to its shard from *source_shard_id*.

    The row had *former_token*, and that of the source had *carried_token* when the tenant was fenced there.
    """

    token: str
    former_token: str
    source_shard_id: str
    carried_token: str


class Rejection(msgspec.Struct, frozen=True):
    """A record that is no operation, and has the ids of its tenant and its request. *error* does not quote it.

    *business_id* tells which of the pairs of ids it names that have the id *tenant_id*. *source* is the stream or the
    queue of the record, *sequence_number* its place in the stream, *message_id* the message's.
    """

    tenant_id: str
    business_id: str
    request_id: str
    reason: str
    error: str
    source: str
    sequence_number: str | None = None
    message_id: str | None = None


class PositionClaim(msgspec.Struct):
    """The *position* that a reader writes into its row with the next batch, and the tokens that the row may have.

    *as_of* is when *position* was computed; each new token contains it. The first token is that of the last write or
    read with a known outcome; the others are of attempts with an unknown one. Without tokens, the reader found no row.
    Then the shard makes the row only if its *move_token* is still the one given: a tenant that was moved there in
    between may lack operations, and no row existed that the move could change. *written* gets each token that is
    committed.
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
    """A resource to rename; *additional_data* is the JSON text, as received, of an object to merge into it."""

    business_id: str
    location_id: str
    resource_type: str
    old_resource_id: str
    new_resource_id: str
    additional_data: str | None
    requested_at: datetime


class AdminAccount(msgspec.Struct, frozen=True):
    """The first administrator of a tenant, to create. Its kind of staff goes by the tenant's own business type."""

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
