"""The file of SSLKEYLOGFILE; aiohttp opens it as it is imported."""

import os

from simplu_worker.errors import ConfigurationError


def require_key_log() -> None:
    """Raise ConfigurationError if the file cannot be written."""
    if path := os.environ.get("SSLKEYLOGFILE"):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        except OSError as exc:
            raise ConfigurationError(
                f"SSLKEYLOGFILE: expected a file that can be written, got {path!r} ({exc.strerror}); unset it"
            ) from None
