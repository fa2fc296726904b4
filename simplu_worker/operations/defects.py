"""Records at which pure code raises what nobody foresaw: such a record becomes a dead letter. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from simplu_worker.errors import place_of
from simplu_worker.operations.operation import Origin, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason

T = TypeVar("T")


def try_twice(step: Callable[[], T]) -> T | Exception:
    """Return the result of *step*, or what it raised at two tries. MemoryError passes: it says nothing of a record."""
    for is_last in (False, True):
        try:
            return step()
        except MemoryError:
            raise
        except Exception as exc:  # noqa: BLE001  # whatever a defect raises
            if is_last:
                return exc
    raise AssertionError("unreachable")


def decode_or_reject(decode: Callable[[], T], origin: Origin, *, sound: Callable[[], object]) -> T | RejectedRecord:
    """Return what *decode* returns for one record; where it raises twice, the record's rejection.

    *sound* decodes a record that is known to be sound. What it raises passes: then no record is at fault.
    """
    decoded = try_twice(decode)
    if isinstance(decoded, Exception):
        sound()
        return RejectedRecord(DeadLetterReason.INTERNAL_ERROR, defect_text(decoded), origin)
    return decoded


def defect_text(exc: Exception) -> str:
    """Return the error of a dead letter `internal_error`."""
    return f"the worker failed at this record, twice: {place_of(exc)}; report it, and replay the record after the fix"
