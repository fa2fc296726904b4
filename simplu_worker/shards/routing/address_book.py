"""Where each shard is: what is said of it, set against what the shard there has confirmed. Pure.

Whoever names shards may be wrong, or change its mind with every answer. So once a shard has been found at an address,
another one is used only after the shard was found there too, and until then nobody is told of it. A replica's address
is a spare one: tried while the shard does not answer at the other, and it is found there once it takes writes.
"""

from __future__ import annotations

from typing import Final

import msgspec

from simplu_worker.shards.postgres.address import ShardAddress

RETURN_DELAY_S: Final = 60.0  # before a shard that works is followed back to where it was before
TRIAL_BACKOFF_BASE_S: Final = 0.5
TRIAL_BACKOFF_MAX_S: Final = 30.0
UNHEALTHY_BACKOFF_MAX_S: Final = 1.0  # while the shard does not answer where it was


class _Candidate(msgspec.Struct):
    """An address that is not in use, and may be tried."""

    address: ShardAddress
    is_named: bool = True  # by the last answer; what is not named any more is not tried, and its rest goes on
    is_standby: bool = False
    failure_count: int = 0
    failed_at: float = 0.0
    backoff_s: float = 0.0


class _KnownShard(msgspec.Struct):
    """Where one shard is, as far as is known."""

    address: ShardAddress
    is_proven: bool = False
    candidate: _Candidate | None = None
    standby: ShardAddress | None = None  # once the trial is adopted
    previous: str | None = None  # the connection string before this one
    switched_at: float = 0.0


class AddressBook:
    """The address to use for each shard, and those that are to be tried."""

    def __init__(self) -> None:
        self._shards: dict[str, _KnownShard] = {}

    def __repr__(self) -> str:
        return f"AddressBook({len(self._shards)} shards, with candidates: {self.contested_shard_ids()})"

    def known_address(self, shard_id: str) -> ShardAddress | None:
        """Return the address to use for a shard that was named before."""
        place = self._shards.get(shard_id)
        return None if place is None else place.address

    def contested_shard_ids(self) -> list[str]:
        """Return the shards that have another address than the one in use."""
        return [
            shard_id for shard_id, one in self._shards.items() if one.candidate is not None and one.candidate.is_named
        ]

    def add(self, address: ShardAddress, *, standby: ShardAddress | None = None) -> None:
        """Add a shard of which nobody else will tell, with the address of its replica."""
        self._shards[address.shard_id] = _KnownShard(
            address, candidate=None if standby is None else _Candidate(standby, is_standby=True)
        )

    def update(self, address: ShardAddress, *, standby: ShardAddress | None = None) -> None:
        """Take what is said anew of a shard that was added: where it is, and the address of its replica.

        Where it was found somewhere else it is used there until it is found at the new address too.
        """
        place = self._shards.get(address.shard_id)
        if place is None or (not place.is_proven and place.address.connection_string != address.connection_string):
            self.add(address, standby=standby)
            return
        is_here = place.address.connection_string == address.connection_string
        place.standby = None if is_here else standby
        if not is_here:
            place.candidate = _Candidate(address)
        else:
            place.candidate = None if standby is None else _Candidate(standby, is_standby=True)

    def remove(self, shard_id: str) -> None:
        """Forget a shard; what becomes of a trial of it is then nobody's concern."""
        self._shards.pop(shard_id, None)

    def resolve(self, named: ShardAddress) -> ShardAddress:
        """Return the address to use for a shard that somebody names: the same, or where it was found."""
        if named.refusal is not None:
            return named
        place = self._shards.get(named.shard_id)
        if place is None:
            self._shards[named.shard_id] = _KnownShard(named)
            return named
        used = place.address.connection_string
        if named.connection_string == used or not place.is_proven:
            if place.candidate is not None:
                place.candidate.is_named = False
            place.address = named
            return named
        if place.candidate is None or place.candidate.address.connection_string != named.connection_string:
            place.candidate = _Candidate(named)
        place.candidate.is_named = True
        place.candidate.address = named
        place.address = msgspec.structs.replace(named, connection_string=used)
        return place.address

    def mark_proven(self, address: ShardAddress) -> None:
        """Note that the shard was found at the address."""
        place = self._shards.get(address.shard_id)
        if place is not None and place.address.connection_string == address.connection_string:
            place.is_proven = True

    def due_candidate(self, shard_id: str, now: float, *, is_healthy: bool) -> ShardAddress | None:
        """Return the address to try for a shard now; *is_healthy* when it answers where it was found."""
        place = self._shards.get(shard_id)
        trial = None if place is None else place.candidate
        if place is None or trial is None or not trial.is_named or (trial.is_standby and is_healthy):
            return None
        if now < trial.failed_at + (trial.backoff_s if is_healthy else min(trial.backoff_s, UNHEALTHY_BACKOFF_MAX_S)):
            return None
        was_left = place.previous == trial.address.connection_string
        if is_healthy and was_left and now < place.switched_at + RETURN_DELAY_S:
            return None
        return trial.address

    def is_standby(self, address: ShardAddress) -> bool:
        """Whether an address that is due is the spare one: nobody says that the shard is there now."""
        place = self._shards.get(address.shard_id)
        return place is not None and place.candidate is not None and place.candidate.is_standby

    def switch_to(self, address: ShardAddress, now: float) -> None:
        """Use an address from now on: the shard was found there."""
        place = self._shards.get(address.shard_id)
        if place is None:
            return
        spare = place.address if self.is_standby(address) else place.standby
        self._shards[address.shard_id] = _KnownShard(
            address,
            is_proven=True,
            candidate=None if spare is None else _Candidate(spare, is_standby=True),
            previous=place.address.connection_string,
            switched_at=now,
        )

    def record_failure(self, address: ShardAddress, now: float, *, draw: float) -> None:
        """Note that the shard was not found at an address; *draw* (0 ≤ draw < 1) spreads the next trials."""
        place = self._shards.get(address.shard_id)
        trial = None if place is None else place.candidate
        if trial is None or trial.address.connection_string != address.connection_string:
            return
        trial.failure_count += 1
        trial.failed_at = now
        span_s = min(TRIAL_BACKOFF_MAX_S, TRIAL_BACKOFF_BASE_S * 2.0 ** min(trial.failure_count, 16))
        trial.backoff_s = span_s * (0.5 + draw / 2)
