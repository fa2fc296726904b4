"""A client of the local Kinesis's model, as botocore's is one of the real Kinesis, over the simulated network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec
from botocore.exceptions import ClientError, ReadTimeoutError
from simulation.simulated_faults import Fault
from simulation.simulated_network import Network
from simulation.simulated_push import PushedBody, PushFaults
from simulation.virtual_time import EPOCH

from simplu_local.kinesis.actions import KinesisActions
from simplu_local.kinesis.errors import KinesisError
from simplu_local.kinesis.model import KinesisAccount, KinesisOptions, LocalStream
from simplu_worker.consumers.kinesis.stream.client import decode_get_records

SERVICE = "kinesis"
STREAM = "operations"


class KinesisService:
    """The account, and its clock: that of the simulation."""

    def __init__(self, network: Network, options: KinesisOptions) -> None:
        self.network = network
        self.account = KinesisAccount(options)
        self.is_false_end: Callable[[], bool] = self._draws_false_end  # whether the next reply looks like one
        self.false_ends = 0.0  # chance of that
        self.iterators: list[tuple[str, str]] = []  # stream shard and type of each iterator that was asked for
        self.push_faults = PushFaults()
        self._was_false = False
        self._actions = KinesisActions(self.account)

    def _draws_false_end(self) -> bool:
        self._was_false = not self._was_false and self.network.draws.random() < self.false_ends
        return self._was_false

    @property
    def stream(self) -> LocalStream:
        self.account.apply_due(self.now_ms)
        return self.account.streams[STREAM]

    @property
    def now_ms(self) -> int:
        return int(EPOCH.timestamp() * 1000 + self.network.loop.time() * 1000)

    def is_closed(self, stream_shard_id: str) -> bool:
        stream_shard = self.stream.stream_shards.get(stream_shard_id)
        return stream_shard is None or not stream_shard.is_open

    def do(self, action: str, **arguments: Any) -> dict[str, Any]:
        try:
            request = self._actions.decode(action, msgspec.json.encode(arguments))
            answer = self._actions.answer(action, request, self.now_ms)
        except KinesisError as exc:
            self.network.faults.felt[Fault.ITERATORS_EXPIRED] += exc.code == "ExpiredIteratorException"
            raise ClientError({"Error": {"Code": exc.code, "Message": exc.message}}, action) from exc
        reply: dict[str, Any] = msgspec.json.decode(answer) if answer else {}
        return reply

    def subscribe(self, **arguments: Any) -> dict[str, Any]:
        faults = self.push_faults
        try:
            faults.refuse()
            request = self._actions.decode("SubscribeToShard", msgspec.json.encode(arguments))
            subscription = self._actions.subscribe(request, self.now_ms)
        except KinesisError as exc:
            raise ClientError({"Error": {"Code": exc.code, "Message": exc.message}}, "SubscribeToShard") from exc
        return {"EventStream": PushedBody(subscription, self.network, lambda: self.now_ms, faults)}


class KinesisClient:
    def __init__(self, service: KinesisService) -> None:
        self._service = service

    async def describe_stream_summary(self, **arguments: Any) -> dict[str, Any]:
        return await self._ask("DescribeStreamSummary", arguments)

    async def create_stream(self, **arguments: Any) -> dict[str, Any]:
        return await self._ask("CreateStream", arguments)

    async def list_shards(self, **arguments: Any) -> dict[str, Any]:
        shard_filter = arguments.get("ShardFilter", {})
        if "Timestamp" in shard_filter:
            arguments["ShardFilter"] = shard_filter | {"Timestamp": shard_filter["Timestamp"].timestamp()}
        return await self._ask("ListShards", arguments)

    async def get_shard_iterator(self, **arguments: Any) -> dict[str, Any]:
        self._service.iterators.append((arguments["ShardId"], arguments["ShardIteratorType"]))
        if "Timestamp" in arguments:
            arguments["Timestamp"] = arguments["Timestamp"].timestamp()
        return await self._ask("GetShardIterator", arguments)

    async def get_records(self, **arguments: Any) -> dict[str, Any]:
        reply = await self._ask("GetRecords", arguments)
        if self._service.is_false_end():
            had_next = reply.get("NextShardIterator") is not None
            self._service.network.faults.note(Fault.FALSE_END, is_felt=had_next)
            reply |= {"NextShardIterator": None, "ChildShards": []}
        return decode_get_records(msgspec.json.encode(reply))

    async def describe_stream_consumer(self, **arguments: Any) -> dict[str, Any]:
        return await self._ask("DescribeStreamConsumer", arguments)

    async def register_stream_consumer(self, **arguments: Any) -> dict[str, Any]:
        return await self._ask("RegisterStreamConsumer", arguments)

    async def subscribe_to_shard(self, **arguments: Any) -> dict[str, Any]:
        start = arguments["StartingPosition"]
        if "Timestamp" in start:
            arguments["StartingPosition"] = start | {"Timestamp": start["Timestamp"].timestamp()}
        subscribe = functools.partial(self._service.subscribe, **arguments)
        return await self._service.network.ask(SERVICE, subscribe, lost=_lost)

    async def _ask(self, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
        network = self._service.network
        if network.draws.random() < network.trouble.throttled:
            network.faults.note(Fault.THROTTLED, is_felt=True)
            return await network.ask(SERVICE, functools.partial(_throttle, action), lost=_lost)
        return await network.ask(SERVICE, functools.partial(self._service.do, action, **arguments), lost=_lost)


def _throttle(action: str) -> dict[str, Any]:
    raise ClientError({"Error": {"Code": "ProvisionedThroughputExceededException", "Message": "as simulated"}}, action)


def _lost() -> Exception:
    exc: Exception = ReadTimeoutError(endpoint_url="https://kinesis.simulated")
    return exc
