"""Access to Kinesis: one stream, its stream shards and their records.

The consumers that are registered with a stream for enhanced fan-out.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, Final, assert_never

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


class ChildShard(msgspec.Struct, frozen=True):
    """A stream shard that continues one that is read to its end."""

    stream_shard_id: str
    parents: frozenset[str]
    hash_range: positions.HashRange


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


class Reply(msgspec.Struct, frozen=True):
    """The reply of one GetRecords; an empty one is normal, also behind the tip.

    *next_iterator* is None at the end of a closed stream shard, together with *child_shards*. *millis_behind* is the
    distance from the tip. *size_bytes* counts for the quota.
    """

    records: list[Record]
    next_iterator: str | None
    millis_behind: int | None
    child_shards: tuple[ChildShard, ...]
    size_bytes: int


class StreamSummary(msgspec.Struct, frozen=True):
    """The state of the stream; *retention* is how long it keeps a record."""

    status: str
    retention: timedelta
    open_stream_shard_count: int


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
        raw = await self._describe_summary()
        return StreamSummary(
            status=raw["StreamStatus"],
            retention=timedelta(hours=raw["RetentionPeriodHours"]),
            open_stream_shard_count=raw["OpenShardCount"],
        )

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
            raw = await self._call("get_records", ShardIterator=iterator, Limit=limit, **self._arn)
        reply = _reply(raw)
        log.debug(
            "records.read",
            stream=self.name,
            record_count=len(reply.records),
            size_bytes=reply.size_bytes,
            millis_behind=reply.millis_behind,
        )
        return reply

    async def _status(self) -> str | None:
        try:
            return str((await self._describe_summary())["StreamStatus"])
        except StreamGoneError:
            return None

    async def _describe_summary(self) -> dict[str, Any]:
        reply = await self._call("describe_stream_summary", **self._key)
        description: dict[str, Any] = reply["StreamDescriptionSummary"]
        return description

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
    match start:
        case positions.AtSequenceNumber(sequence_number):
            return {"Type": "AT_SEQUENCE_NUMBER", "SequenceNumber": sequence_number}
        case positions.AfterSequenceNumber(sequence_number):
            return {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": sequence_number}
        case positions.TrimHorizon():
            return {"Type": "TRIM_HORIZON"}
        case positions.Latest():
            return {"Type": "LATEST"}
        case positions.AtTimestamp(instant):
            return {"Type": "AT_TIMESTAMP", "Timestamp": instant}
        case _:
            assert_never(start)


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
        hash_range=_hash_range(raw),
        starting_sequence_number=sequence_numbers["StartingSequenceNumber"],
        ending_sequence_number=sequence_numbers.get("EndingSequenceNumber"),
    )


def child_shard(raw: dict[str, Any]) -> ChildShard:
    """Return a child shard, as replies and events name it."""
    return ChildShard(raw["ShardId"], frozenset(raw.get("ParentShards", ())), _hash_range(raw))


def _hash_range(raw: dict[str, Any]) -> positions.HashRange:
    hash_keys = raw["HashKeyRange"]
    return positions.HashRange(int(hash_keys["StartingHashKey"]), int(hash_keys["EndingHashKey"]))


class _GetRecords(msgspec.Struct, rename="pascal"):
    records: list[Record]
    next_shard_iterator: str | None = None
    millis_behind_latest: int | None = None
    child_shards: list[dict[str, Any]] | None = None


_get_records_decoder = msgspec.json.Decoder(_GetRecords, strict=False)  # times are numbers: seconds of the epoch


def decode_get_records(body: bytes) -> dict[str, Any]:
    """Return a reply as botocore would, but with `Record`s as its records. Raises msgspec.DecodeError."""
    reply = _get_records_decoder.decode(body)
    return {
        "Records": reply.records,
        "NextShardIterator": reply.next_shard_iterator,
        "MillisBehindLatest": reply.millis_behind_latest,
        "ChildShards": reply.child_shards,
    }


DECODERS["GetRecords"] = decode_get_records


def _reply(raw: dict[str, Any]) -> Reply:
    records: list[Record] = raw["Records"]
    return Reply(
        records=records,
        # At the end of a closed stream shard the member is null or missing, depending on the server.
        next_iterator=raw.get("NextShardIterator") or None,
        millis_behind=raw.get("MillisBehindLatest"),
        child_shards=tuple(child_shard(child) for child in raw.get("ChildShards") or ()),
        size_bytes=sum([len(record.data) + len(record.partition_key) for record in records]),
    )


NOT_FOUND: Final = "ResourceNotFoundException"


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
        """Return the consumer *name*, registered where it is missing. Idempotent, also among replicas."""
        found = await self.find(name)
        if found is not None:
            return found
        reply = await self._call("register_stream_consumer", StreamARN=await self._find_stream_arn(), ConsumerName=name)
        registered = _consumer(reply["Consumer"])
        log.info("consumer.registered", consumer=name, stream=self._name_or_arn)
        return registered

    async def _find_stream_arn(self) -> str:
        if self._stream_arn is None:
            reply = await self._call("describe_stream_summary", StreamName=self._name_or_arn)
            self._stream_arn = str(reply["StreamDescriptionSummary"]["StreamARN"])
        return self._stream_arn

    async def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = await getattr(self._client, operation)(**arguments)
        except AWS_ERRORS as exc:
            raise translate(exc) from exc
        return reply


def _consumer(raw: dict[str, Any]) -> StreamConsumer:
    return StreamConsumer(raw["ConsumerName"], raw["ConsumerARN"], raw["ConsumerStatus"])
