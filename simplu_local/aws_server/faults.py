"""Commands that every local AWS service takes on its control path: faults, the clock and the options. Pure.

A command is a JSON object with its name in the member `do`: fault, clear_faults, advance_clock, set, and the service's
own. Its other members are those of the class.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from simplu_local.aws_server.errors import AwsError


class Fault(msgspec.Struct, tag_field="do", tag="fault", forbid_unknown_fields=True, kw_only=True):
    """Make the next *count* calls of *action* fail in the way that *kind* names.

    Kinds of every service: `hang` (no answer until the faults are cleared or the client disconnects); `cut` (the
    connection is reset); `delay` (the answer comes *delay_ms* later); and those for which `error` returns an error.
    With *applied* the action is done first, and the fault strikes its answer.
    """

    action: str
    kind: str
    count: Annotated[int, Meta(ge=1)] = 1
    applied: bool = False
    delay_ms: int = 0
    code: str | None = None
    status: int | None = None

    @property
    def target(self) -> str | None:
        """The stream shard or queue of which calls fail; none: every call of the action fails."""
        raise NotImplementedError

    def error(self) -> AwsError | None:
        """Return the error to answer with; none when this fault is of another kind."""
        raise NotImplementedError


class ClearFaults(msgspec.Struct, tag_field="do", tag="clear_faults", forbid_unknown_fields=True):
    """Drop the remaining faults, and let hanging calls continue."""


class AdvanceClock(msgspec.Struct, tag_field="do", tag="advance_clock", forbid_unknown_fields=True):
    """Put the server's clock forward."""

    ms: Annotated[int, Meta(ge=0)]


class SetOptions(msgspec.Struct, tag_field="do", tag="set", forbid_unknown_fields=True):
    """Change members of the service's options."""

    options: dict[str, Any]


FaultT = TypeVar("FaultT", bound=Fault)


class FaultQueue(Generic[FaultT]):
    """The faults that are still to strike, in the order in which they were added."""

    def __init__(self) -> None:
        self._pending: list[FaultT] = []
        self.struck: Counter[str] = Counter()  # calls, by kind and action

    def __repr__(self) -> str:
        return f"FaultQueue({self._pending})"

    @property
    def pending(self) -> list[FaultT]:
        """The remaining faults; each counts down."""
        return self._pending

    def add(self, fault: FaultT) -> None:
        """Add *fault* behind those of the same action."""
        self._pending.append(fault)

    def clear(self) -> None:
        """Drop the remaining faults."""
        self._pending.clear()

    def take(self, action: str, target: str | None) -> FaultT | None:
        """Return the fault that strikes this call of *action* on *target*, and count it; none without one."""
        for fault in self._pending:
            if fault.action == action and fault.target in {None, target}:
                fault.count -= 1
                self.struck[f"{fault.kind} {action}"] += 1
                if not fault.count:
                    self._pending.remove(fault)
                return fault
        return None


def change_options(options: msgspec.Struct, changes: dict[str, Any]) -> None:
    """Change *options* in place: others hold references to them. Raises msgspec.ValidationError before any change."""
    checked = msgspec.convert(msgspec.to_builtins(options) | changes, type(options))
    for name in changes:
        setattr(options, name, getattr(checked, name))
