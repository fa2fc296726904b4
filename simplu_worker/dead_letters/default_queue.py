"""The dead-letter queue of a worker that is given none: beside its control queue, created at the start."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

import structlog
from yarl import URL

from simplu_worker.aws.clients import Client, longest_pause_s
from simplu_worker.aws.sqs_queue import RETENTION_MAX_S, create_queue, find_queue_url
from simplu_worker.errors import ConfigurationError, PermanentError, RetryableError
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.waits import sleep_or_event

RETRY_BASE_S: Final = 0.5
RETRY_MAX_S: Final = 30.0

log = structlog.get_logger(__name__)


async def ensure_default_queue(
    client: Client,
    url: str,
    stopping: asyncio.Event,
    *,
    on_failure: Callable[[], None] = lambda: None,
    draw: Callable[[], float] = random.random,
) -> None:
    """Create the queue at *url* unless it exists, and log its name; return early when *stopping* is set.

    Tries again for as long as SQS does not answer, and calls *on_failure* after each such try. Raises
    `ConfigurationError` when the queue may not be created.
    """
    failure_count = 0
    while not stopping.is_set():
        try:
            await _ensure_queue(client, url)
        except RetryableError as exc:
            failure_count += 1
            delay_s = backoff_s(
                failure_count, draw=draw(), base_s=RETRY_BASE_S, max_s=longest_pause_s(exc, RETRY_MAX_S)
            )
            log.warning("dead_letter.queue_not_ensured", url=url, retry_in_s=round(delay_s, 1), error=str(exc))
            on_failure()
            await sleep_or_event(delay_s, until=stopping)
        except PermanentError as exc:
            raise ConfigurationError(
                f"SQS_DEAD_LETTER_QUEUE_URL: expected a queue, or the right to create {url}, got: {exc}; "
                "create a queue and name it here, or allow sqs:GetQueueUrl and sqs:CreateQueue"
            ) from exc
        else:
            return


async def _ensure_queue(client: Client, url: str) -> None:
    name = url.rpartition("/")[2]
    found_url = await find_queue_url(client, name)
    is_new = found_url is None
    if found_url is None:
        found_url = await create_queue(client, name, retention_s=RETENTION_MAX_S)
    if URL(found_url).path != URL(url).path:
        raise PermanentError(f"{found_url}, of another account than the control queue")
    log.info("dead_letter.default_queue", queue=name, url=url, is_new=is_new)
