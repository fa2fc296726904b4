"""Attributes of a lease row for people: how its owner is doing, and a request to its owner. Pure.

Replicas know of each other through the lease table alone, and the KCL before 3.5 takes every row there for a lease. So
a report is an attribute of a row that its owner writes anyway. It names its writer: a worker that does not know the
attribute would leave it stale. No replica decides by a report.

A request is written by the replica that a person asks, into the rows of others, and read by each with its next renewal.
It stays in the row and needs no clock: an owner carries out those that appear while it owns the lease, each once.

A replica that can do nothing has no lease, so it writes its report into any row, again and again: one that does not
change any more is of a replica that has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

REPORT: Final = "simpluReport"
RETRY: Final = "simpluRetry"
IDLE: Final = "simpluIdle"
TEXT_MAX_LENGTH: Final = 1000
HELD_MAX: Final = 3  # targets in a report
TOP_MAX: Final = 3  # tenants in a report
LARGE: Final = 1e9  # above any value that can be
DECIMALS: Final = 3


class HeldTarget(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A held target, as `/status` names it, and the age of its first operation.

    *reason* is a `HoldReason`, or a word that only a newer worker knows.
    """

    target: str
    reason: str
    age_s: float


class TopTenant(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A tenant and the seconds of the last minute that its operations took of a Postgres shard."""

    tenant_id: str
    shard_id: str
    took_s: float


class ReplicaFigures(msgspec.Struct, frozen=True, gc=False):
    """The figures of a whole replica: the p99 latency of the last interval, the dead letters of the last hour.

    *top* are the tenants that took most of the last minute, at most TOP_MAX, the first one most. *is_clock_apart* is
    whether the clock of its machine is wrong. *unable* is an `Inability`, or a word that only a newer worker knows: why
    the replica can do nothing.
    """

    latency_p99_s: float | None = None
    dead_letter_count: int | None = None
    top: tuple[TopTenant, ...] = ()
    is_clock_apart: bool = False
    unable: str | None = None


class LeaseReport(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The state of the reader of a stream shard, as its owner *by* wrote it with the last renewal.

    *held* are the oldest of its held targets; *figures* are those of its replica. *read_count* are the records since
    the reader began. *beat* counts the reports of a replica without a lease.
    """

    by: str
    version: str = ""
    lag_s: float | None = None
    records_per_s: float | None = None
    held_count: int | None = None
    held: tuple[HeldTarget, ...] = ()
    latency_p99_s: float | None = None
    dead_letter_count: int | None = None
    top: tuple[TopTenant, ...] = ()
    is_clock_apart: bool = False
    unable: str | None = None
    beat: int = 0
    read_count: int | None = None

    @property
    def figures(self) -> ReplicaFigures:
        """The figures of the replica."""
        return ReplicaFigures(self.latency_p99_s, self.dead_letter_count, self.top, self.is_clock_apart, self.unable)


class HoldRetry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A request to the owner of a lease to try its held targets now: all of them, or *target*, as `/status` names it.

    The *request_id* is another one for each request of a person.
    """

    request_id: str
    target: str | None = None


class RecordRate:
    """The records a second between two renewals."""

    def __init__(self, *, now: float) -> None:
        self._noted_at = now
        self._noted_count = 0

    def __repr__(self) -> str:
        return f"RecordRate({self._noted_count})"

    def note(self, count: int, *, now: float) -> float | None:
        """Take over that *count* records were read since the reader began, until *now* (monotonic); return the rate."""
        passed_s, new = now - self._noted_at, count - self._noted_count
        if passed_s <= 0:
            return None
        self._noted_at, self._noted_count = now, count
        return new / passed_s


def encode_report(report: LeaseReport) -> str:
    """Return the text of a report for the row, with the tenants and the held targets that it has room for."""
    rounded = msgspec.structs.replace(
        report,
        lag_s=_rounded(report.lag_s),
        records_per_s=_rounded(report.records_per_s),
        latency_p99_s=_rounded(report.latency_p99_s),
        held=tuple(msgspec.structs.replace(one, age_s=_bounded(one.age_s)) for one in report.held),
        top=tuple(msgspec.structs.replace(one, took_s=_bounded(one.took_s)) for one in report.top),
    )
    text = msgspec.json.encode(rounded).decode()
    while len(text) > TEXT_MAX_LENGTH and (rounded.top or rounded.held):
        shorter = {"top": rounded.top[:-1]} if rounded.top else {"held": rounded.held[:-1]}
        rounded = msgspec.structs.replace(rounded, **shorter)
        text = msgspec.json.encode(rounded).decode()
    return text


def first_held(targets: Iterable[HeldTarget]) -> tuple[HeldTarget, ...]:
    """Return those of *targets* that a report names, the oldest first."""
    return tuple(sorted(targets, key=lambda target: -target.age_s)[:HELD_MAX])


def decode_report(text: str, owner: str | None) -> LeaseReport | None:
    """Return the report in the *text* of a row of *owner*; None for that of another one, and if it cannot be read."""
    report = decode_idle_report(text)
    return report if report is not None and report.by == owner else None


def decode_idle_report(text: str) -> LeaseReport | None:
    """Return the report in *text*, of whichever replica; None if it cannot be read."""
    if len(text) > TEXT_MAX_LENGTH:
        return None
    try:
        report = msgspec.json.decode(text, type=LeaseReport)
    except (msgspec.DecodeError, UnicodeError):
        return None
    ages = (one.age_s for one in report.held)
    took_s = (one.took_s for one in report.top)
    figures = (report.latency_p99_s, report.dead_letter_count)
    numbers = (report.lag_s, report.records_per_s, report.held_count, *figures, *ages, *took_s)
    is_sane = all(number is None or 0 <= number < LARGE for number in numbers) and (report.read_count or 0) >= 0
    return report if is_sane else None


def encode_retry(retry: HoldRetry) -> str:
    """Return the text of a request for the row. Raises ValueError for one that no owner would read."""
    text = msgspec.json.encode(retry).decode()
    if len(text) > TEXT_MAX_LENGTH:
        raise ValueError("target: expected the name of a held target, as /status has it, got a longer text")
    return text


def decode_retry(text: str) -> HoldRetry | None:
    """Return the request in the *text* of a row; None if it cannot be read."""
    if len(text) > TEXT_MAX_LENGTH:
        return None
    try:
        return msgspec.json.decode(text, type=HoldRetry)
    except (msgspec.DecodeError, UnicodeError):
        return None


def _rounded(value: float | None) -> float | None:
    return None if value is None else _bounded(value)


def _bounded(value: float) -> float:
    return round(min(max(value, 0.0), LARGE - 1), DECIMALS)
