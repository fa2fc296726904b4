"""The points between the phases of a move at which a test lets something go wrong; the product has nothing of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from simplu_worker.commands.moves import MoveRunner
from simplu_worker.transfers.moving.mover import Mover

# Before or after the first call of a method. The states of the tenant on its source and on its target there.
POINTS: Final[dict[str, tuple[str, str]]] = {
    "before _prepare": ("active", ""),
    "after _prepare": ("active", "incoming"),
    "after _copy": ("active", "incoming"),
    "after _catch_up": ("active", "incoming"),
    "after _verify_live": ("active", "incoming"),
    "before _fence": ("active", "incoming"),
    "after _fence": ("fenced", "incoming"),
    "after _finish_copy": ("fenced", "ready"),
    "before _commit": ("fenced", "ready"),
    "after _commit": ("moved", "ready"),
    "after _activate": ("moved", "active"),
    "before _publish": ("moved", "active"),
    "after _publish": ("moved", "active"),
}

Patch = Callable[[Any, str, Any], None]
"""What replaces a method: `setattr`, or that of a `MonkeyPatch`."""


def set_failpoint(point: str, act: Callable[[Any], Awaitable[None]], patch: Patch) -> None:
    when, _, name = point.partition(" ")
    owner: type = MoveRunner if hasattr(MoveRunner, name) else Mover
    original = getattr(owner, name)

    async def reached(self: Any, *arguments: Any) -> Any:
        if when == "before":
            await act(self)
        result = await original(self, *arguments)
        if when == "after":
            await act(self)
        return result

    patch(owner, name, reached)
