"""`stream remove-consumer`: deregister the consumer of enhanced fan-out, which no stop of a worker does."""

from __future__ import annotations

import msgspec

from simplu_worker.assembly.aws import consumer_name, open_stream_consumers
from simplu_worker.commands.output.display import print_json, print_note
from simplu_worker.commands.requirements import require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError


class RemovedConsumer(msgspec.Struct, frozen=True):
    """The result of `stream remove-consumer`."""

    applied: bool
    consumer: str
    stream: str


async def remove_consumer(settings: Settings, name: str | None, *, apply: bool, as_json: bool) -> int:
    """Print the consumer *name*, else that of the settings; with *apply* deregister it.

    Raises PermanentError where none is registered.
    """
    require_settings(settings, stream=True)
    chosen, stream = name or consumer_name(settings), settings.kinesis_stream_name or ""
    async with open_stream_consumers(settings) as consumers:
        if not (await consumers.remove(chosen) if apply else await consumers.find(chosen)):
            known = ", ".join(sorted(one.name for one in await consumers.list())) or "none"
            raise PermanentError(f"expected a consumer of stream {stream} out of: {known}; got {chosen}")
    if as_json:
        print_json(RemovedConsumer(apply, chosen, stream))
    elif not apply:
        print_note(
            f"consumer {chosen} of stream {stream} is registered; with --apply it is removed, and the subscriptions of "
            "running workers end"
        )
    else:
        print_note(f"consumer {chosen} of stream {stream} is removed; a worker with KINESIS_READ=fan-out adds it again")
    return 0
