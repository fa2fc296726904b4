from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs


@pytest.fixture(autouse=True)
def _logs_are_not_printed() -> Iterator[None]:
    """Keep the log, which is not set up here, away from what a command prints."""
    with capture_logs():
        yield
