"""An upgrade of all shards under load, on a small scale: the same program tells it at full size."""

from __future__ import annotations

import pytest
from acceptance.programs import run_program


@pytest.mark.slow(30)
def test_shards_are_upgraded_under_load_while_old_and_new_workers_work_side_by_side() -> None:
    run_program("acceptance.upgrading", "--shards", "2", "--rate", "100", "--seconds", "1.5")
