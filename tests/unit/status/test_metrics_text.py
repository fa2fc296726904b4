from __future__ import annotations

import pytest

from simplu_worker.status.server import encoder_for


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("application/openmetrics-text;version=1.0.0;escaping=dots;q=0.6,*/*;q=0.1", "application/openmetrics-text"),
        ("application/openmetrics-text;version=1.x", "text/plain"),
    ],
)
def test_format_follows_the_accept_header(accept: str, expected: str) -> None:
    assert encoder_for(accept)[1].startswith(expected)
