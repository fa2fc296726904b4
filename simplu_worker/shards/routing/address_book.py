"""The address of each shard: the addresses that the locator names, checked against those the shard was found at. Pure.

A locator may name a wrong address, or another one with every answer. So once a shard was found at an address, another
one is used only after the shard was found there too, and until then callers get the proven one. The address of a
standby is a candidate while the shard does not answer at its own, and is used once the standby takes writes.
"""

from __future__ import annotations

from typing import Final

import msgspec

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.timing.backoff import backoff_s

RETURN_DELAY_S: Final = 60.0  # before a healthy shard is followed back to its previous address
TRIAL_BACKOFF_BASE_S: Final = 1.0
TRIAL_BACKOFF_MAX_S: Final = 30.0
UNHEALTHY_BACKOFF_MAX_S: Final = 1.0  # while the shard does not answer at its present address


class _Candidate(msgspec.Struct):
    """An address that is not in use, and may be tried."""

    address: ShardAddress
    is_named: bool = True  # by the last answer of the locator; otherwise not tried, but the back-off goes on
    is_standby: bool = False
    failure_count: int = 0
    failed_at: float = 0.0
    backoff_s: float = 0.0


class _KnownShard(msgspec.Struct):
    """The addresses of one shard."""

    address: ShardAddress
    is_proven: bool = False
    candidate: _Candidate | None = None
    standby: ShardAddress | None = None  # the next candidate, once the present one is in use
    previous: str | None = None  # the connection string before this one
    switched_at: float = 0.0


class AddressBook:
    """The address to use for each shard, and the candidates to try."""

    def __init__(self) -> None:
        self._shards: dict[str, _KnownShard] = {}

    def __repr__(self) -> str:
        return f"AddressBook({len(self._shards)} shards, with candidates: {self.contested_shard_ids()})"

    def known_address(self, shard_id: str) -> ShardAddress | None:
        """Return the address to use for a shard that was named before."""
        shard = self._shards.get(shard_id)
        return None if shard is None else shard.address

    def contested_shard_ids(self) -> list[str]:
        """Return the shards that have a candidate beside the address in use."""
        return [
            shard_id
            for shard_id, shard in self._shards.items()
            if shard.candidate is not None and shard.candidate.is_named
        ]

    def add(self, address: ShardAddress, *, standby: ShardAddress | None = None) -> None:
        """Add a shard of the static map, with the address of its standby."""
        candidate = None if standby is None else _Candidate(standby, is_standby=True)
        self._shards[address.shard_id] = _KnownShard(address, candidate=candidate)

    def update(self, address: ShardAddress, *, standby: ShardAddress | None = None) -> None:
        """Take over the addresses that a new static map has for a shard.

        A shard that was found at another address keeps that one until the shard is found at the new one too.
        """
        shard = self._shards.get(address.shard_id)
        if shard is None or not shard.is_proven:
            self.add(address, standby=standby)
        elif shard.address.connection_string == address.connection_string:
            shard.candidate = None if standby is None else _Candidate(standby, is_standby=True)
            shard.standby = None
        else:
            shard.candidate = _Candidate(address)
            shard.standby = standby

    def remove(self, shard_id: str) -> None:
        """Forget a shard; the results of its trials are then ignored."""
        self._shards.pop(shard_id, None)

    def resolve(self, named: ShardAddress) -> ShardAddress:
        """Return the address to use for a shard that the locator names: the named one, or the proven one."""
        if named.refusal is not None:
            return named
        shard = self._shards.get(named.shard_id)
        if shard is None:
            self._shards[named.shard_id] = _KnownShard(named)
            return named
        used = shard.address.connection_string
        if named.connection_string == used or not shard.is_proven:
            if shard.candidate is not None:
                shard.candidate.is_named = False
            shard.address = named
            return named
        if shard.candidate is None or shard.candidate.address.connection_string != named.connection_string:
            shard.candidate = _Candidate(named)
        shard.candidate.is_named = True
        shard.candidate.address = named
        shard.address = msgspec.structs.replace(named, connection_string=used)
        return shard.address

    def mark_proven(self, address: ShardAddress) -> None:
        """Record that the shard was found at the address."""
        shard = self._shards.get(address.shard_id)
        if shard is not None and shard.address.connection_string == address.connection_string:
            shard.is_proven = True

    def due_candidate(self, shard_id: str, now: float, *, is_healthy: bool) -> ShardAddress | None:
        """Return the address to try for a shard now; *is_healthy* if the shard answers at its present address."""
        shard = self._shards.get(shard_id)
        if shard is None or shard.candidate is None:
            return None
        candidate = shard.candidate
        if not candidate.is_named or (candidate.is_standby and is_healthy):
            return None
        pause_s = candidate.backoff_s if is_healthy else min(candidate.backoff_s, UNHEALTHY_BACKOFF_MAX_S)
        if now < candidate.failed_at + pause_s:
            return None
        is_return = shard.previous == candidate.address.connection_string
        if is_healthy and is_return and now < shard.switched_at + RETURN_DELAY_S:
            return None
        return candidate.address

    def is_standby(self, address: ShardAddress) -> bool:
        """Return whether a due address is that of the standby, which the locator does not name as the shard's own."""
        shard = self._shards.get(address.shard_id)
        return shard is not None and shard.candidate is not None and shard.candidate.is_standby

    def switch_to(self, address: ShardAddress, now: float) -> None:
        """Use an address from now on: the shard was found there."""
        shard = self._shards.get(address.shard_id)
        if shard is None:
            return
        standby = shard.address if self.is_standby(address) else shard.standby
        self._shards[address.shard_id] = _KnownShard(
            address,
            is_proven=True,
            candidate=None if standby is None else _Candidate(standby, is_standby=True),
            previous=shard.address.connection_string,
            switched_at=now,
        )

    def record_failure(self, address: ShardAddress, now: float, *, draw: float) -> None:
        """Record that the shard was not found at an address; *draw* (0 ≤ draw < 1) spreads the next trials."""
        shard = self._shards.get(address.shard_id)
        candidate = None if shard is None else shard.candidate
        if candidate is None or candidate.address.connection_string != address.connection_string:
            return
        candidate.failure_count += 1
        candidate.failed_at = now
        candidate.backoff_s = backoff_s(
            candidate.failure_count, draw=draw, base_s=TRIAL_BACKOFF_BASE_S, max_s=TRIAL_BACKOFF_MAX_S
        )
