"""Access to Kinesis: one stream, its stream shards, their records, and its consumers for enhanced fan-out."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import structlog

from simplu_worker.aws.clients import AWS_ERRORS, DECODERS, Client, ThrottledError, address_of, error_code, translate
from simplu_worker.consumers.kinesis.stream import positions
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.instruments import KINESIS_GET_RECORDS, KINESIS_THROTTLED

log = structlog.get_logger(__name__)

READY_STATES = frozenset({"ACTIVE", "UPDATING"})
STATE_POLL_INTERVAL_S = 0.5  # DescribeStreamSummary: 20 a second and account


class StreamShard(msgspec.Struct, frozen=True):
    """A stream shard as ListShards returns it; *parents* may be past their retention."""

    stream_shard_id: str
    parents: frozenset[str]
    hash_range: positions.HashRange
    starting_sequence_number: str
    ending_sequence_number: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it still accepts records."""
        return self.ending_sequence_number is None


class ChildShard(
    msgspec.Struct,
    frozen=True,
    rename={"stream_shard_id": "ShardId", "parents": "ParentShards", "hash_range": "HashKeyRange"},
):
    """A stream shard that continues one that is read to its end."""

    stream_shard_id: str
    hash_range: positions.HashRange
    parents: frozenset[str] = frozenset()


class ExpiredIteratorError(RetryableError):
    """The iterator is older than five minutes."""


class StreamGoneError(PermanentError):
    """The stream or stream shard never existed, was deleted, or is past its retention."""


class Record(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={
        "sequence_number": "SequenceNumber",
        "partition_key": "PartitionKey",
        "data": "Data",
        "arrived_at": "ApproximateArrivalTimestamp",
    },
):
    """A record as Kinesis returns it; *arrived_at* (UTC) is approximate."""

    sequence_number: str
    partition_key: str
    data: bytes
    arrived_at: datetime


class Reply(
    msgspec.Struct,
    frozen=True,
    rename={"millis_behind": "MillisBehindLatest"}
    | {"records": "Records", "next_iterator": "NextShardIterator", "child_shards": "ChildShards"},
):
    """The reply of one GetRecords; an empty one is normal, also behind the tip.

    *next_iterator* is None at the end of a closed stream shard, together with *child_shards*. *millis_behind* is the
    distance from the tip. *size_bytes* counts for the quota.
    """

    records: list[Record]
    next_iterator: str | None = None
    millis_behind: int | None = None
    child_shards: tuple[ChildShard, ...] | None = None
    size_bytes: int = 0

    def __post_init__(self) -> None:
        size_bytes = sum([len(record.data) + len(record.partition_key) for record in self.records])
        msgspec.structs.force_setattr(self, "size_bytes", size_bytes)


class StreamSummary(
    msgspec.Struct,
    frozen=True,
    rename={"status": "StreamStatus", "arn": "StreamARN"}
    | {"retention_hours": "RetentionPeriodHours", "open_stream_shard_count": "OpenShardCount"},
):
    """The state of the stream."""

    status: str
    arn: str
    retention_hours: float
    open_stream_shard_count: int

    @property
    def retention(self) -> timedelta:
        """For how long it keeps a record."""
        return timedelta(hours=self.retention_hours)


class Stream:
    """The stream *name_or_arn*.

    All methods raise ThrottledError, another RetryableError, StreamGoneError or another PermanentError.
    """

    def __init__(self, client: Client, name_or_arn: str) -> None:
        self._client = client
        self._arn = {"StreamARN": name_or_arn} if name_or_arn.startswith("arn:") else {}
        self._key = self._arn or {"StreamName": name_or_arn}
        self.name = stream_name(name_or_arn)

    @property
    def address(self) -> str:
        """The endpoint and the name, for people."""
        return address_of(self._client, self.name)

    async def ensure(self, *, create: bool, stream_shard_count: int) -> None:
        """Wait until the stream can be read; create a missing one if *create*."""
        while (status := await self._status()) not in READY_STATES:
            if status is not None:
                await asyncio.sleep(STATE_POLL_INTERVAL_S)
            elif create:
                await self._create(stream_shard_count)
            else:
                raise StreamGoneError(
                    f"stream {self.name}: expected it to exist, it does not; create it, or set KINESIS_CREATE_STREAM",
                )

    async def describe(self) -> StreamSummary:
        """Return the state of the stream."""
        reply = await self._call("describe_stream_summary", **self._key)
        return msgspec.convert(reply["StreamDescriptionSummary"], StreamSummary)

    async def list_stream_shards(
        self, at: positions.TrimHorizon | positions.Latest | positions.AtTimestamp | None = None
    ) -> list[StreamShard]:
        """Return the stream shards that hold records; with *at*, those open then."""
        found: list[StreamShard] = []
        page: dict[str, Any] = self._key | _shard_filter(at)
        while True:
            reply = await self._call("list_shards", **page)
            found += [_stream_shard(raw) for raw in reply["Shards"]]
            if not reply.get("NextToken"):
                return found
            page = {"NextToken": reply["NextToken"]}  # Kinesis rejects a token with a stream name

    async def get_iterator(self, stream_shard_id: str, start: positions.Start) -> str:
        """Return an iterator for `get_records`, valid for five minutes."""
        reply = await self._call("get_shard_iterator", ShardId=stream_shard_id, **self._key, **_iterator_type(start))
        return str(reply["ShardIterator"])

    async def get_records(self, iterator: str, *, limit: int) -> Reply:
        """Read up to *limit* records (at most 10,000, and 10 MiB). May also raise ExpiredIteratorError."""
        with KINESIS_GET_RECORDS.time():
            reply: Reply = (await self._call("get_records", ShardIterator=iterator, Limit=limit, **self._arn))["Reply"]
        log.debug(
            "records.read",
            stream=self.name,
            record_count=len(reply.records),
            size_bytes=reply.size_bytes,
            millis_behind=reply.millis_behind,
        )
        return reply

    async def ensure_consumer(self, name: str) -> str:
        """Return the ARN of the consumer *name*, registered where it is missing; RetryableError until it is active.

        Idempotent, also among replicas.
        """
        arn = self._arn.get("StreamARN") or (await self.describe()).arn
        try:
            found = await self._call("describe_stream_consumer", StreamARN=arn, ConsumerName=name)
            consumer = found["ConsumerDescription"]
        except StreamGoneError:
            consumer = (await self._call("register_stream_consumer", StreamARN=arn, ConsumerName=name))["Consumer"]
            log.info("consumer.registered", consumer=name, stream=self.name)
        if consumer["ConsumerStatus"] != "ACTIVE":
            raise RetryableError(f"consumer {name}: expected it to be ACTIVE, it is {consumer['ConsumerStatus']}")
        return str(consumer["ConsumerARN"])

    async def _status(self) -> str | None:
        try:
            return (await self.describe()).status
        except StreamGoneError:
            return None

    async def _create(self, stream_shard_count: int) -> None:
        try:
            await self._call("create_stream", StreamName=self.name, ShardCount=stream_shard_count)
        except _InUseError:
            return  # another replica was faster
        log.info("stream.created", stream=self.name, stream_shard_count=stream_shard_count)

    async def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = await getattr(self._client, operation)(**arguments)
        except AWS_ERRORS as exc:
            error = self._error_of(exc)
            if isinstance(error, ThrottledError):
                KINESIS_THROTTLED.inc()
            raise error from exc
        return reply

    def _error_of(self, exc: Exception) -> Exception:
        match error_code(exc):
            case "ExpiredIteratorException":
                return ExpiredIteratorError(f"stream {self.name}: the iterator expired")
            case "ExpiredNextTokenException":
                return RetryableError(f"stream {self.name}: the list of stream shards expired between two pages")
            case "ResourceInUseException":
                return _InUseError(f"stream {self.name} is being created, changed or deleted")
            case "ResourceNotFoundException":
                return StreamGoneError(f"stream {self.name}: expected it, or its stream shard, to exist; {exc}")
        return translate(exc)


def stream_name(name_or_arn: str) -> str:
    """Return the name of a stream."""
    return name_or_arn.rpartition("/")[2]  # arn:aws:kinesis:region:account:stream/name


class _InUseError(RetryableError):
    """The stream is in a state that does not allow this now."""


def starting_position(start: positions.Start) -> dict[str, Any]:
    """Return *start* as SubscribeToShard takes it."""
    position: dict[str, Any] = msgspec.to_builtins(start, builtin_types=[datetime])
    return position


_OF_ITERATOR: Final = {"Type": "ShardIteratorType", "SequenceNumber": "StartingSequenceNumber"}


def _iterator_type(start: positions.Start) -> dict[str, Any]:
    return {_OF_ITERATOR.get(name, name): value for name, value in starting_position(start).items()}


def _shard_filter(at: positions.TrimHorizon | positions.Latest | positions.AtTimestamp | None) -> dict[str, Any]:
    if at is None:
        return {}
    position = starting_position(at)
    return {"ShardFilter": position | {"Type": f"AT_{position['Type'].removeprefix('AT_')}"}}


def _stream_shard(raw: dict[str, Any]) -> StreamShard:
    parents = (raw.get("ParentShardId"), raw.get("AdjacentParentShardId"))
    sequence_numbers = raw["SequenceNumberRange"]
    return StreamShard(
        stream_shard_id=raw["ShardId"],
        parents=frozenset(parent for parent in parents if parent),
        hash_range=msgspec.convert(raw["HashKeyRange"], positions.HashRange, strict=False),
        starting_sequence_number=sequence_numbers["StartingSequenceNumber"],
        ending_sequence_number=sequence_numbers.get("EndingSequenceNumber"),
    )


_reply_decoder = msgspec.json.Decoder(Reply, strict=False)  # times are numbers, and hash keys text


def decode_get_records(body: bytes) -> dict[str, Any]:
    """Return the reply in place of its members. Raises msgspec.DecodeError."""
    return {"Reply": _reply_decoder.decode(body)}


DECODERS["GetRecords"] = decode_get_records
