"""The actions of the local Kinesis: from requests to answers, on the model; callers pass the time. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

import msgspec

from simplu_local.kinesis import requests
from simplu_local.kinesis.arguments import parse_record, start_position
from simplu_local.kinesis.descriptions import (
    child_shard_description,
    shard_description,
    stream_description,
    stream_summary,
)
from simplu_local.kinesis.errors import KinesisError, invalid_argument, throughput_exceeded
from simplu_local.kinesis.fan_out import requests as fan_out_requests
from simplu_local.kinesis.fan_out.actions import FanOutActions
from simplu_local.kinesis.fan_out.subscription import LocalSubscription
from simplu_local.kinesis.list_shards import list_page
from simplu_local.kinesis.model import KinesisAccount, LocalStream, set_retention
from simplu_local.kinesis.stream_shard import LocalStreamShard
from simplu_local.kinesis.tokens import IteratorToken, seal_token, unseal_token

MAX_RECORDS = 10_000  # of one answer: API_GetRecords
MAX_REQUEST_BYTES = 10 * 1024 * 1024  # data and keys of one request: API_PutRecords
DEFAULT_ON_DEMAND_COUNT = 4  # stream shards when CreateStream names no number

KinesisReply = dict[str, Any] | bytes | None
"""The answer of an action: an object, encoded JSON, or none."""


class KinesisActions:
    """The account's API. `decode` and `answer` raise KinesisError for every error answer."""

    def __init__(self, account: KinesisAccount) -> None:
        self.account = account
        self._fan_out = FanOutActions(account)
        self._actions: dict[str, tuple[msgspec.json.Decoder[Any], Callable[[Any, int], KinesisReply]]] = {
            name: (msgspec.json.Decoder(shape), method)
            for name, shape, method in (
                ("CreateStream", requests.CreateStream, self._create_stream),
                ("DeleteStream", requests.StreamOnly, self._delete_stream),
                ("DescribeStream", requests.DescribeStream, self._describe_stream),
                ("DescribeStreamSummary", requests.StreamOnly, self._describe_stream_summary),
                ("ListStreams", requests.ListStreams, self._list_streams),
                ("ListShards", requests.ListShards, self._list_shards),
                ("GetShardIterator", requests.GetShardIterator, self._get_shard_iterator),
                ("GetRecords", requests.GetRecords, self._get_records),
                ("PutRecord", requests.PutRecord, self._put_record),
                ("PutRecords", requests.PutRecords, self._put_records),
                ("SplitShard", requests.SplitShard, self._split_shard),
                ("MergeShards", requests.MergeShards, self._merge_shards),
                ("UpdateShardCount", requests.UpdateShardCount, self._update_shard_count),
                ("IncreaseStreamRetentionPeriod", requests.SetRetention, self._increase_retention),
                ("DecreaseStreamRetentionPeriod", requests.SetRetention, self._decrease_retention),
                ("RegisterStreamConsumer", fan_out_requests.RegisterStreamConsumer, self._fan_out.register),
                ("DescribeStreamConsumer", fan_out_requests.ConsumerOnly, self._fan_out.describe),
                ("ListStreamConsumers", fan_out_requests.ListStreamConsumers, self._fan_out.list),
                ("DeregisterStreamConsumer", fan_out_requests.ConsumerOnly, self._fan_out.deregister),
                ("SubscribeToShard", fan_out_requests.SubscribeToShard, _refuse_subscription),
            )
        }

    def __repr__(self) -> str:
        return f"Actions({self.account!r})"

    def decode(self, action: str, body: bytes) -> Any:
        """Return the request in *body*."""
        if action not in self._actions:
            raise KinesisError("UnknownOperationException", f"the local Kinesis has no action {action!r}")
        try:
            return self._actions[action][0].decode(body or b"{}")
        except msgspec.ValidationError as exc:
            raise KinesisError("ValidationException", f"1 validation error detected: {exc}") from exc
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise KinesisError("SerializationException", f"expected a JSON object: {exc}") from exc

    def answer(self, action: str, request: Any, now_ms: int) -> bytes:
        """Do *request* and return the body of the answer."""
        self.account.apply_due(now_ms)
        reply = self._actions[action][1](request, now_ms)
        if isinstance(reply, bytes):
            return reply
        return b"" if reply is None else msgspec.json.encode(reply)

    def subscribe(self, request: fan_out_requests.SubscribeToShard, now_ms: int) -> LocalSubscription:
        """Do a SubscribeToShard, of which the answer goes on for minutes."""
        self.account.apply_due(now_ms)
        return self._fan_out.subscribe(request, now_ms)

    def stream_shard_of(self, request: Any) -> str | None:
        """Return the stream shard that *request* reads; none when it reads none."""
        if isinstance(request, requests.GetRecords):
            token = unseal_token(request.shard_iterator)
            return token.stream_shard_id if isinstance(token, IteratorToken) else None
        return getattr(request, "shard_id", None)

    def _find_stream(self, request: requests.KinesisRequest) -> LocalStream:
        if request.stream_arn is not None:
            return self.account.find(request.stream_arn.rpartition("/")[2])
        if request.stream_name is None:
            raise invalid_argument("expected StreamName or StreamARN")
        return self.account.find(request.stream_name)

    def _find_ready_stream(self, request: requests.KinesisRequest) -> LocalStream:
        """Return a stream that can be written and read: one that is still being created is not found."""
        stream = self._find_stream(request)
        if stream.status == "CREATING":
            raise KinesisError("ResourceNotFoundException", f"stream {stream.name} is still being created")
        return stream

    def _create_stream(self, request: requests.CreateStream, now_ms: int) -> None:
        count = request.shard_count or DEFAULT_ON_DEMAND_COUNT
        stream = self.account.create(request.stream_name, count, now_ms)
        stream.max_record_bytes = request.max_record_size_in_kib * 1024

    def _delete_stream(self, request: requests.StreamOnly, now_ms: int) -> None:
        self.account.delete(self._find_stream(request).name, now_ms)

    def _describe_stream(self, request: requests.DescribeStream, _now_ms: int) -> KinesisReply:
        stream = self._find_stream(request)
        after = request.exclusive_start_shard_id or ""
        shards = [one for one in stream.stream_shards.values() if one.stream_shard_id > after]
        description = stream_description(stream) | {
            "Shards": [shard_description(one) for one in shards[: request.limit]],
            "HasMoreShards": len(shards) > request.limit,
        }
        return {"StreamDescription": description}

    def _describe_stream_summary(self, request: requests.StreamOnly, _now_ms: int) -> KinesisReply:
        stream = self._find_stream(request)
        description = stream_description(stream) | {
            "OpenShardCount": 0 if stream.status == "CREATING" else len(stream.open_stream_shards),
            "ConsumerCount": len(stream.consumers),
            "MaxRecordSizeInKiB": stream.max_record_bytes // 1024,
        }
        return {"StreamDescriptionSummary": description}

    def _list_streams(self, request: requests.ListStreams, _now_ms: int) -> KinesisReply:
        """API_ListStreams; the token is the last name, in base64."""
        after = request.exclusive_start_stream_name or ""
        if request.next_token is not None:
            try:
                after = base64.b64decode(request.next_token, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError) as exc:
                raise invalid_argument("expected a NextToken that ListStreams returned") from exc
        names = sorted(name for name in self.account.streams if name > after)
        page = names[: request.limit]
        token = {"NextToken": base64.b64encode(page[-1].encode()).decode()} if len(names) > len(page) else {}
        return {
            "StreamNames": page,
            "HasMoreStreams": bool(token),
            "StreamSummaries": [stream_summary(self.account.streams[name]) for name in page],
        } | token

    def _list_shards(self, request: requests.ListShards, now_ms: int) -> KinesisReply:
        stream_shards, token = list_page(self.account, request, self._find_stream, now_ms)
        return {"Shards": [shard_description(one) for one in stream_shards]} | ({"NextToken": token} if token else {})

    def _get_shard_iterator(self, request: requests.GetShardIterator, now_ms: int) -> KinesisReply:
        stream = self._find_ready_stream(request)
        stream_shard = stream.find(request.shard_id)
        position = start_position(request, stream, stream_shard, now_ms)
        if self.account.options.read_throttling:
            if not stream_shard.iterator_quota.has(1, now_ms):
                raise throughput_exceeded(f"rate exceeded for shard {request.shard_id} in stream {stream.name}")
            stream_shard.iterator_quota.take(1)
        return {"ShardIterator": self._seal_iterator(stream, stream_shard, position, now_ms)}

    def _seal_iterator(self, stream: LocalStream, stream_shard: LocalStreamShard, position: int, now_ms: int) -> str:
        token = IteratorToken(
            stream.name, stream.created_ms, stream_shard.stream_shard_id, position, now_ms, self.account.generation
        )
        return seal_token(token)

    def _get_records(self, request: requests.GetRecords, now_ms: int) -> KinesisReply:
        if request.limit > MAX_RECORDS:
            raise invalid_argument(f"expected a Limit of at most {MAX_RECORDS}, got {request.limit}")
        stream, stream_shard, position = self._locate(request, now_ms)
        records = stream.read(stream_shard, position, limit=request.limit)
        behind_ms = stream_shard.millis_behind(records, now_ms)
        drained = not stream_shard.is_open and behind_ms == 0
        at_end = drained and (not records.encoded or self.account.options.end_with_last_records)
        head = b'{"Records":[%b],"MillisBehindLatest":%d' % (b",".join(records.encoded), behind_ms)
        if not at_end:
            iterator = self._seal_iterator(stream, stream_shard, records.next_position, now_ms)
            return b'%b,"NextShardIterator":"%b"}' % (head, iterator.encode())
        null = b',"NextShardIterator":null' if self.account.options.null_next_iterator else b""
        children = msgspec.json.encode([child_shard_description(child) for child in stream_shard.child_shards])
        return b'%b%b,"ChildShards":%b}' % (head, null, children)

    def read_nothing(self, request: requests.GetRecords, now_ms: int) -> bytes:
        """Answer GetRecords without records although some may be stored: "It might take multiple calls"."""
        self.account.apply_due(now_ms)
        stream, stream_shard, position = self._locate(request, now_ms)
        behind_ms = stream_shard.millis_behind(stream_shard.read(position, limit=0, max_bytes=0), now_ms)
        iterator = self._seal_iterator(stream, stream_shard, position, now_ms)
        return msgspec.json.encode({"Records": [], "MillisBehindLatest": behind_ms, "NextShardIterator": iterator})

    def _locate(self, request: requests.GetRecords, now_ms: int) -> tuple[LocalStream, LocalStreamShard, int]:
        token = unseal_token(request.shard_iterator)
        if not isinstance(token, IteratorToken):
            raise invalid_argument("invalid ShardIterator")
        age_ms = now_ms - token.issued_ms
        if age_ms > self.account.options.iterator_ttl_ms or token.generation != self.account.generation:
            raise KinesisError("ExpiredIteratorException", f"the iterator expired: it was issued {age_ms} ms ago")
        stream = self.account.find(token.stream)
        if stream.created_ms != token.created_ms:
            raise KinesisError("ResourceNotFoundException", f"stream {token.stream} was deleted and created again")
        return stream, stream.find(token.stream_shard_id), token.position

    def _put_record(self, request: requests.PutRecord, _now_ms: int) -> KinesisReply:
        stream = self._find_ready_stream(request)
        entry = requests.PutEntry(request.data, request.partition_key, request.explicit_hash_key)
        stream_shard, number = stream.put(parse_record(entry, stream))
        stream.limit_memory()
        return {"ShardId": stream_shard.stream_shard_id, "SequenceNumber": number}

    def _put_records(self, request: requests.PutRecords, _now_ms: int) -> KinesisReply:
        """API_PutRecords: one result for each record, in order; a rejected record does not stop the following ones."""
        stream = self._find_ready_stream(request)
        records = [parse_record(entry, stream) for entry in request.records]
        if sum(record.size_bytes for record in records) > MAX_REQUEST_BYTES:
            raise invalid_argument(f"expected at most {MAX_REQUEST_BYTES} bytes of data and keys in one request")
        results: list[dict[str, str]] = []
        failed_count = 0
        for record in records:
            try:
                stream_shard, number = stream.put(record)
            except KinesisError as exc:
                failed_count += 1
                results.append({"ErrorCode": exc.code, "ErrorMessage": exc.message})
            else:
                results.append({"SequenceNumber": number, "ShardId": stream_shard.stream_shard_id})
        stream.limit_memory()
        return {"FailedRecordCount": failed_count, "Records": results}

    def _split_shard(self, request: requests.SplitShard, _now_ms: int) -> None:
        self._find_stream(request).split(request.shard_to_split, int(request.new_starting_hash_key))

    def _merge_shards(self, request: requests.MergeShards, _now_ms: int) -> None:
        self._find_stream(request).merge(request.shard_to_merge, request.adjacent_shard_to_merge)

    def _update_shard_count(self, request: requests.UpdateShardCount, _now_ms: int) -> KinesisReply:
        stream = self._find_stream(request)
        count = len(stream.open_stream_shards)
        stream.scale(request.target_shard_count)
        target = request.target_shard_count
        return {"StreamName": stream.name, "StreamARN": stream.arn} | {
            "CurrentShardCount": count,
            "TargetShardCount": target,
        }

    def _increase_retention(self, request: requests.SetRetention, _now_ms: int) -> None:
        set_retention(self._find_stream(request), request.retention_period_hours, longer=True)

    def _decrease_retention(self, request: requests.SetRetention, _now_ms: int) -> None:
        set_retention(self._find_stream(request), request.retention_period_hours, longer=False)


def _refuse_subscription(_request: fan_out_requests.SubscribeToShard, _now_ms: int) -> KinesisReply:
    raise invalid_argument("SubscribeToShard has no answer in one piece: `subscribe` has it")
