"""The load of the retention benchmark: as many deletes as creates, so that only the log could grow."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from benchmarks.throughput.mixes import Mix

RETENTION_MIX: Final = Mix(
    "as many deletes as creates",
    lists=2,
    kinds=MappingProxyType({"create": 250, "update": 300, "patch": 190, "delete": 250}),
)
TRICKLE_LOCATION: Final = "trickle"
TRICKLE_RATE: Final = 40.0  # records/s
