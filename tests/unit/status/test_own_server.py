from __future__ import annotations

import pytest

from simplu_worker.status.tls import own_url


@pytest.mark.parametrize(
    ("http_host", "expected"),
    [
        (None, "http://127.0.0.1:8080"),
        ("", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("::1", "http://[::1]:8080"),
        ("10.0.0.5", "http://10.0.0.5:8080"),
        ("worker.internal", "http://worker.internal:8080"),
    ],
)
def test_own_url_is_where_the_server_listens(http_host: str | None, expected: str) -> None:
    assert own_url(http_host, 8080) == expected
