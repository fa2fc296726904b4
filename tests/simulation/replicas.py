"""Replicas of the worker in a simulation: the real fleet, readers and lanes on simulated services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random
from typing import Any, TypeAlias

import msgspec
from simulated_dynamodb import DynamoDb
from simulated_kinesis import STREAM, KinesisClient, KinesisService
from simulated_shards import PostgresShards, SimulatedDeadLetters, SimulatedRouter
from virtual_time import Process, VirtualLoop

from simplu_worker.consumers.kinesis.fleet import Fleet
from simplu_worker.consumers.kinesis.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases import worker_id
from simplu_worker.consumers.kinesis.reader import ReadingRules
from simplu_worker.consumers.kinesis.stream import Stream

APPLICATION = "simplu"

FleetMaker: TypeAlias = Callable[..., Fleet]


class Surroundings(msgspec.Struct):
    """What all replicas of a simulation share."""

    loop: VirtualLoop
    draws: Random
    kinesis: KinesisService
    dynamodb: DynamoDb
    shards: PostgresShards
    lease_duration_s: float
    initial_position: str | datetime
    tenant_wait: timedelta
    skew_max_s: float
    make_fleet: FleetMaker = Fleet


class Replica:
    """One process with its fleet."""

    def __init__(self, around: Surroundings, number: int) -> None:
        self.me = worker_id("host", number, f"{number:04x}")
        self.process = Process(self.me)
        self.stopping = asyncio.Event()
        skew = timedelta(seconds=around.draws.uniform(-around.skew_max_s, around.skew_max_s))
        self.fleet = around.make_fleet(
            Stream(KinesisClient(around.kinesis), STREAM),
            LeaseTable(around.dynamodb, APPLICATION),
            me=self.me,
            lease_duration_s=around.lease_duration_s,
            initial_position=around.initial_position,
            create_stream=True,
            stream_shard_count=1,
            router=SimulatedRouter(around.shards),
            dead_letters=SimulatedDeadLetters(around.shards),
            rules=ReadingRules(operation_max_bytes=100_000, list_result_limit=100, tenant_wait=around.tenant_wait),
            draw=around.draws.random,
            utc=lambda: around.loop.utc() + skew,
        )
        self.task = around.loop.start(self.process, self.fleet.run(self.stopping))

    def __repr__(self) -> str:
        return f"Replica({self.process!r}, {self.fleet!r})"

    @property
    def is_alive(self) -> bool:
        """Whether it still runs, and is to go on."""
        return not (self.process.is_dead or self.stopping.is_set() or self.task.done())

    def kill(self) -> None:
        """End it as kill -9 does: not one more line of it runs."""
        self.process.is_dead = True

    def running(self) -> list[str]:
        """Return the stream shards of which it runs a reader."""
        return [reader.stream_shard_id for reader in self.fleet.readers()]

    def bug(self) -> BaseException | None:
        """Return the unknown exception that ended it, if one did."""
        if not self.task.done() or self.task.cancelled():
            return None
        return self.task.exception()


def rows_of(around: Surroundings) -> dict[str, Any]:
    """Return the lease table's rows as they are."""
    return dict(around.dynamodb.table(APPLICATION).rows)
