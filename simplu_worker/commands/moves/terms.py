"""The options of every command that moves tenants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from cyclopts import Parameter, validators


@Parameter(name="*")
@dataclass(frozen=True)
class MoveBounds:
    """The options of a command about each of its moves."""

    max_rows_per_second: Annotated[
        float | None,
        Parameter(
            validator=validators.Number(gt=0, lte=1e9),
            help="Copy each tenant no faster; shards that answer slower than usual slow a copy down in any case.",
        ),
    ] = None
    max_pause: Annotated[
        float,
        Parameter(
            validator=validators.Number(gt=0),
            help="Refuse a move for which the tenant's operations would wait for longer, in seconds.",
        ),
    ] = 0.5


@Parameter(name="*")
@dataclass(frozen=True)
class MoveTerms(MoveBounds):
    """The options of `tenants move`, `shards rebalance` and `shards drain` about all of their moves."""

    parallel: Annotated[
        int, Parameter(validator=validators.Number(gte=1, lte=100), help="Move so many tenants at a time.")
    ] = 10


DEFAULT_BOUNDS: Final = MoveBounds()
DEFAULT_TERMS: Final = MoveTerms()
