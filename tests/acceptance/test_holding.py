"""What trouble costs the others, on a small scale: the same programs tell it at full size.

Of a shard that is lost `test_isolation.py` and `test_failures.py` tell it, of unknown and late tenants
`tests/integration/kinesis/test_reader.py` and `test_reader_holding.py`.

The bounds are wide, for the machine may be busy: they tell those who wait a moment from those who wait for the trouble
to end. How well the others go on is for the programs on a machine that does nothing else.
"""

from __future__ import annotations

import pytest
from acceptance.programs import run_program

# Less than the half minute after which the worker gives the frozen shard up.
BOUNDS = ("--prompt-seconds", "5", "--children-seconds", "20")

pytestmark = pytest.mark.slow(40)


def test_children_go_on_when_a_shard_is_frozen_through_two_reshards_and_the_worker_is_killed() -> None:
    run_program("acceptance.holding", "reshard", "--rate", "40", "--seconds", "4", "--kill-worker", *BOUNDS)
