"""Check that the settings a command needs are present. Pure."""

from __future__ import annotations

from simplu_worker.config.settings import ROUTES, Settings
from simplu_worker.errors import ConfigurationError


def require_settings(
    settings: Settings, *, routes: bool = False, stream: bool = False, queue: str | None = None
) -> None:
    """Raise ConfigurationError, which names every missing variable, unless the required settings are present.

    *queue* is the name of the variable with the URL of a required queue.
    """
    problems = []
    if stream and settings.kinesis_stream_name is None:
        problems.append("KINESIS_STREAM_NAME: expected the stream to put operations on, got nothing; set it")
    if queue is not None and getattr(settings, queue.lower()) is None:
        problems.append(f"{queue}: expected the queue to send order events to, got nothing; set it")
    if routes and not any(getattr(settings, name.lower()) for name in ROUTES):
        problems.append(f"{ROUTES[0]}: expected a way to find shards, {' or '.join(ROUTES)}, got none; set one")
    if problems:
        raise ConfigurationError(*problems)
