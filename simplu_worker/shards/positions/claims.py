"""Which fencing tokens a reader's row may have while attempts to write it are made (architecture, idea 8). Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from simplu_worker.shards.postgres.errors import InvalidDataError, LostRaceError, RolledBackError, StatementFailedError
from simplu_worker.shards.types import PositionChangedError, PositionClaim

UNCERTAIN_ATTEMPTS_MAX: Final = 20  # attempts with an unknown outcome that a claim remembers; beyond, the row is read

_ROLLED_BACK: Final = (PositionChangedError, LostRaceError, InvalidDataError, StatementFailedError, RolledBackError)


@contextmanager
def attempt_claim(claim: PositionClaim) -> Iterator[str]:
    """Yield a fencing token to write; keep it in *claim* if the row has it or, after an unknown outcome, may have it.

    Blocks may overlap: a transaction that its caller has abandoned goes on if other callers share it.
    """
    token = str(uuid.uuid4())
    claim.fencing_tokens = [*claim.fencing_tokens[:1], *claim.fencing_tokens[1:][-UNCERTAIN_ATTEMPTS_MAX:], token]
    try:
        yield token
    except _ROLLED_BACK:
        claim.fencing_tokens = [known for known in claim.fencing_tokens if known != token]
        raise
    if token in claim.fencing_tokens:  # otherwise a later attempt has committed already
        claim.fencing_tokens = claim.fencing_tokens[claim.fencing_tokens.index(token) :]
