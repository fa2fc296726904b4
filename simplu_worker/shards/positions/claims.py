"""Which fencing tokens a reader's row may have while attempts to write it are made (architecture, idea 8). Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from simplu_worker.shards.postgres.errors import LostRaceError, RolledBackError, StatementFailedError
from simplu_worker.shards.types import PositionChangedError, PositionClaim
from simplu_worker.timing.uuid7 import uuid7

UNCERTAIN_ATTEMPTS_MAX: Final = 20  # attempts with an unknown outcome that a claim remembers; beyond, the row is read

_ROLLED_BACK: Final = (PositionChangedError, LostRaceError, StatementFailedError, RolledBackError)


@contextmanager
def attempt_claim(claim: PositionClaim) -> Iterator[str]:
    """Yield a fencing token to write; keep it in *claim* if the row has it or, after an unknown outcome, may have it.

    Blocks may overlap: a transaction that its caller has abandoned goes on if other callers share it.
    """
    token, written = timed_token(uuid.uuid4(), claim.as_of), claim.written
    claim.fencing_tokens = [*claim.fencing_tokens[:1], *claim.fencing_tokens[1:][-UNCERTAIN_ATTEMPTS_MAX:], token]
    try:
        yield token
    except _ROLLED_BACK:
        claim.fencing_tokens = [known for known in claim.fencing_tokens if known != token]
        raise
    written.append(token)
    if token in claim.fencing_tokens:  # otherwise a later attempt has committed already
        claim.fencing_tokens = claim.fencing_tokens[claim.fencing_tokens.index(token) :]


def timed_token(token: uuid.UUID, at: datetime | None) -> str:
    """Return the random *token* with the time *at* of the row's content, which a backup of the shard keeps.

    Without *at* the token is returned as it is.
    """
    return str(token if at is None else uuid7(at, token))
