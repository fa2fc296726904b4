"""Where each shard is: what is said of it, set against what the shard there has confirmed. Pure.

Whoever names shards may be wrong, or change its mind with every answer. So once a shard has been found at an address,
another one is used only after the shard was found there too, and until then nobody is told of it. A replica's address
is a spare one: tried while the shard does not answer at the other, and it is found there once it takes writes.
"""

from __future__ import annotations

from typing import Final

import msgspec

from simplu_worker.shards.postgres.address import ShardAddress

RETURN_REST_S: Final = 60.0  # before a shard that works is followed back to where it was before
TRIAL_REST_BASE_S: Final = 0.5
TRIAL_REST_MAX_S: Final = 30.0
TROUBLE_REST_MAX_S: Final = 1.0  # while the shard does not answer where it was


class _Trial(msgspec.Struct):
    """An address that is not in use, and may be tried."""

    address: ShardAddress
    is_named: bool = True  # by the last answer; what is not named any more is not tried, and its rest goes on
    is_spare: bool = False
    failure_count: int = 0
    failed_at: float = 0.0
    rest_s: float = 0.0


class _Place(msgspec.Struct):
    """Where one shard is, as far as is known."""

    address: ShardAddress
    is_proven: bool = False
    trial: _Trial | None = None
    spare: ShardAddress | None = None  # once the trial is adopted
    left: str | None = None  # the connection string before this one
    left_at: float = 0.0


class AddressBook:
    """The address to use for each shard, and those that are to be tried."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}

    def __repr__(self) -> str:
        return f"AddressBook({len(self._places)} shards, to be tried: {self.contested()})"

    def known(self, shard_id: str) -> ShardAddress | None:
        """Return the address to use for a shard that was named before."""
        place = self._places.get(shard_id)
        return None if place is None else place.address

    def contested(self) -> list[str]:
        """Return the shards that have another address than the one in use."""
        return [shard_id for shard_id, one in self._places.items() if one.trial is not None and one.trial.is_named]

    def add(self, address: ShardAddress, *, spare: ShardAddress | None = None) -> None:
        """Add a shard of which nobody else will tell, with the address of its replica."""
        self._places[address.shard_id] = _Place(address, trial=None if spare is None else _Trial(spare, is_spare=True))

    def rename(self, address: ShardAddress, *, spare: ShardAddress | None = None) -> None:
        """Take what is said anew of a shard that was added: where it is, and the address of its replica.

        Where it was found somewhere else it is used there until it is found at the new address too.
        """
        place = self._places.get(address.shard_id)
        if place is None or (not place.is_proven and place.address.connection_string != address.connection_string):
            self.add(address, spare=spare)
            return
        is_here = place.address.connection_string == address.connection_string
        place.spare = None if is_here else spare
        if not is_here:
            place.trial = _Trial(address)
        else:
            place.trial = None if spare is None else _Trial(spare, is_spare=True)

    def remove(self, shard_id: str) -> None:
        """Forget a shard; what becomes of a trial of it is then nobody's concern."""
        self._places.pop(shard_id, None)

    def settle(self, named: ShardAddress) -> ShardAddress:
        """Return the address to use for a shard that somebody names: the same, or where it was found."""
        if named.refusal is not None:
            return named
        place = self._places.get(named.shard_id)
        if place is None:
            self._places[named.shard_id] = _Place(named)
            return named
        used = place.address.connection_string
        if named.connection_string == used or not place.is_proven:
            if place.trial is not None:
                place.trial.is_named = False
            place.address = named
            return named
        if place.trial is None or place.trial.address.connection_string != named.connection_string:
            place.trial = _Trial(named)
        place.trial.is_named = True
        place.trial.address = named
        place.address = msgspec.structs.replace(named, connection_string=used)
        return place.address

    def proved(self, address: ShardAddress) -> None:
        """Note that the shard was found at the address."""
        place = self._places.get(address.shard_id)
        if place is not None and place.address.connection_string == address.connection_string:
            place.is_proven = True

    def due(self, shard_id: str, now: float, *, is_well: bool) -> ShardAddress | None:
        """Return the address to try for a shard now; *is_well* when it answers where it was found."""
        place = self._places.get(shard_id)
        trial = None if place is None else place.trial
        if place is None or trial is None or not trial.is_named or (trial.is_spare and is_well):
            return None
        if now < trial.failed_at + (trial.rest_s if is_well else min(trial.rest_s, TROUBLE_REST_MAX_S)):
            return None
        was_left = place.left == trial.address.connection_string
        if is_well and was_left and now < place.left_at + RETURN_REST_S:
            return None
        return trial.address

    def is_spare(self, address: ShardAddress) -> bool:
        """Whether an address that is due is the spare one: nobody says that the shard is there now."""
        place = self._places.get(address.shard_id)
        return place is not None and place.trial is not None and place.trial.is_spare

    def adopted(self, address: ShardAddress, now: float) -> None:
        """Use an address from now on: the shard was found there."""
        place = self._places.get(address.shard_id)
        if place is None:
            return
        spare = place.address if self.is_spare(address) else place.spare
        self._places[address.shard_id] = _Place(
            address,
            is_proven=True,
            trial=None if spare is None else _Trial(spare, is_spare=True),
            left=place.address.connection_string,
            left_at=now,
        )

    def refused(self, address: ShardAddress, now: float, *, draw: float) -> None:
        """Note that the shard was not found at an address; *draw* (0 ≤ draw < 1) spreads the next trials."""
        place = self._places.get(address.shard_id)
        trial = None if place is None else place.trial
        if trial is None or trial.address.connection_string != address.connection_string:
            return
        trial.failure_count += 1
        trial.failed_at = now
        span_s = min(TRIAL_REST_MAX_S, TRIAL_REST_BASE_S * 2.0 ** min(trial.failure_count, 16))
        trial.rest_s = span_s * (0.5 + draw / 2)
