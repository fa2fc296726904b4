"""The errors that doors raise."""

from __future__ import annotations

from simplu_worker.errors import RetryableError


class _StatusError(RetryableError):
    def __init__(self, status: int) -> None:
        super().__init__(f"expected status 200, got {status}", retry_after_s=2.0)


def test_retryable_error_has_its_message_as_text_whatever_its_arguments_are() -> None:
    error = _StatusError(503)
    assert (str(error), error.retry_after_s) == ("expected status 200, got 503", 2.0)
