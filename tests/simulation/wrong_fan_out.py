"""Designs of reading by push that must not be: a simulation with faults of subscriptions has to notice each.

As in `wrong_designs`, each overrides what exists.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

import msgspec
from simulation.simulated_push import PushFaults
from simulation.simulated_world import FleetMaker

from simplu_worker.consumers.kinesis.fetch.cursor import PushedCursor
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.recovery.reader_progress import ReaderLease
from simplu_worker.consumers.kinesis.stream.client import Record, Reply
from simplu_worker.consumers.kinesis.stream.positions import Latest, Start
from simplu_worker.timing.waits import sleep_or_event


class _PatientCursor(PushedCursor):
    def _silent_at(self, heard_at: float) -> float:
        return heard_at + 3600.0


class _ForgetfulCursor(PushedCursor):
    def _next_start(self) -> Start:
        return Latest() if self._last_number >= 0 else super()._next_start()


class _RepetitiveCursor(PushedCursor):
    def _drop_repeats(self, records: list[Record]) -> list[Record]:
        return records


class _ResignedCursor(PushedCursor):
    is_resigned = False

    def _note_loss(self, error: str) -> None:
        super()._note_loss(error)
        self.is_resigned = "ResourceInUse" in error

    async def read(self, stopping: asyncio.Event) -> Reply | None:
        if self.is_resigned:
            await sleep_or_event(0.5, until=stopping)
            return None
        return await super().read(stopping)


class _WaitingCursor(PushedCursor):
    async def _poll(self, stopping: asyncio.Event) -> Reply | None:
        await sleep_or_event(0.5, until=stopping)
        return None


class _PromptCursor(PushedCursor):
    def _note_time(self, arrived_before: datetime | None, now: float, *, has_records: bool) -> None:
        self.asked_at = now


def _with_cursor(cursor_class: type[PushedCursor]) -> FleetMaker:
    class WrongFleet(Fleet):
        def create_reader(self, lease: Lease, pending: TenantSet, held: ReaderLease) -> StreamShardReader:
            reader = super().create_reader(lease, pending, held)
            reader.cursor.__class__ = cursor_class
            return reader

    return WrongFleet


class WrongAboutFanOut(msgspec.Struct, frozen=True):
    """A wrong design, and the faults that show it."""

    make_fleet: FleetMaker
    faults: PushFaults
    longest_s: float = 0.05  # on the way of an event


WRONG_ABOUT_FAN_OUT = {
    "a silent subscription is waited for": WrongAboutFanOut(_with_cursor(_PatientCursor), PushFaults(silent=1.0)),
    "a subscription goes on with the newest record": WrongAboutFanOut(
        _with_cursor(_ForgetfulCursor), PushFaults(ends=1.0)
    ),
    "records that come again are taken": WrongAboutFanOut(_with_cursor(_RepetitiveCursor), PushFaults(repeats=1.0)),
    "a subscription that another takes is the end of reading": WrongAboutFanOut(
        _with_cursor(_ResignedCursor), PushFaults(taken=1.0)
    ),
    "a refused subscription is waited for": WrongAboutFanOut(_with_cursor(_WaitingCursor), PushFaults(refused=1.0)),
    "an event is as new as its arrival": WrongAboutFanOut(
        _with_cursor(_PromptCursor), PushFaults(late=0.5), longest_s=4.5
    ),
}
