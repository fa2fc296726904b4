"""Records at which a decoder raises what nobody foresaw: such a record becomes a dead letter. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from simplu_worker.errors import place_of
from simplu_worker.operations.operation import Origin, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason

T = TypeVar("T")


def decode_or_reject(decode: Callable[[], T], origin: Origin, *, sound: Callable[[], object]) -> T | RejectedRecord:
    """Return what *decode* returns for one record; where it raises, the record's rejection.

    What *sound*, for a record that is known to be sound, raises passes: then no record is at fault.
    """
    try:
        return decode()
    except MemoryError:  # says nothing of a record
        raise
    except Exception as exc:  # noqa: BLE001  # whatever a defect raises
        sound()
        return RejectedRecord(DeadLetterReason.INTERNAL_ERROR, defect_text(exc), origin)


def defect_text(exc: Exception) -> str:
    """Return the error of a dead letter `internal_error`."""
    return f"the worker failed at this record alone: {place_of(exc)}; report it, and replay the record after the fix"
