"""The cut-over from the TypeScript worker, on a small scale and by the page's own commands."""

from __future__ import annotations

import pytest
from acceptance.programs import run_program


@pytest.mark.slow(25)
def test_shard_of_the_typescript_worker_is_adopted_under_load_by_the_commands_of_the_page() -> None:
    run_program("acceptance.adopting", "--rows", "10000", "--kills", "1")
