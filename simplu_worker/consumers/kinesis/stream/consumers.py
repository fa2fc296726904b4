"""The consumers that are registered with a stream for enhanced fan-out."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import structlog

from simplu_worker.aws.clients import AWS_ERRORS, Client, error_code, translate
from simplu_worker.errors import RetryableError

NOT_FOUND: Final = "ResourceNotFoundException"

log = structlog.get_logger(__name__)


class StreamConsumer(msgspec.Struct, frozen=True):
    """A registered consumer; *status* is CREATING, ACTIVE or DELETING."""

    name: str
    arn: str
    status: str


class StreamConsumers:
    """The consumers of the stream *name_or_arn*. All methods raise RetryableError or PermanentError."""

    def __init__(self, client: Client, name_or_arn: str) -> None:
        self._client = client
        self._name_or_arn = name_or_arn
        self._stream_arn = name_or_arn if name_or_arn.startswith("arn:") else None

    def __repr__(self) -> str:
        return f"<StreamConsumers of {self._name_or_arn}>"

    async def list(self) -> list[StreamConsumer]:
        """Return all registered consumers, of any application."""
        found: list[StreamConsumer] = []
        page: dict[str, Any] = {}
        while True:
            reply = await self._call("list_stream_consumers", StreamARN=await self._find_stream_arn(), **page)
            found += [_consumer(raw) for raw in reply["Consumers"]]
            # Some emulators return a token with the last page, too; the page behind it is empty.
            if not reply.get("NextToken") or not reply["Consumers"]:
                return found
            page = {"NextToken": reply["NextToken"]}

    async def find(self, name: str) -> StreamConsumer | None:
        """Return the consumer *name*; None where none is registered."""
        stream_arn = await self._find_stream_arn()
        try:
            reply = await self._client.describe_stream_consumer(StreamARN=stream_arn, ConsumerName=name)
        except AWS_ERRORS as exc:
            if error_code(exc) == NOT_FOUND:
                return None
            raise translate(exc) from exc
        return _consumer(reply["ConsumerDescription"])

    async def ensure(self, name: str) -> StreamConsumer:
        """Return the consumer *name*; register it where it is missing. Idempotent, also among replicas."""
        found = await self.find(name)
        if found is not None:
            return found
        reply = await self._call("register_stream_consumer", StreamARN=await self._find_stream_arn(), ConsumerName=name)
        registered = _consumer(reply["Consumer"])
        log.info("consumer.registered", consumer=name, stream=self._name_or_arn)
        return registered

    async def remove(self, name: str) -> bool:
        """Deregister the consumer *name*; return False where none is registered."""
        if await self.find(name) is None:
            return False
        await self._call("deregister_stream_consumer", StreamARN=await self._find_stream_arn(), ConsumerName=name)
        return True

    async def _find_stream_arn(self) -> str:
        if self._stream_arn is None:
            reply = await self._call("describe_stream_summary", StreamName=self._name_or_arn)
            self._stream_arn = reply["StreamDescriptionSummary"]["StreamARN"]
        if self._stream_arn is None:
            raise RetryableError(f"stream {self._name_or_arn}: expected its ARN in its description, got none")
        return self._stream_arn

    async def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = await getattr(self._client, operation)(**arguments)
        except AWS_ERRORS as exc:
            raise translate(exc) from exc
        return reply


def _consumer(raw: dict[str, Any]) -> StreamConsumer:
    return StreamConsumer(raw["ConsumerName"], raw["ConsumerARN"], raw["ConsumerStatus"])
