"""`check`: contact all dependencies once, concurrently; print their answers and what is odd."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Final, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from simplu_worker.assembly.aws import kcl_leader_watch
from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.aws.clients import (
    Client,
    TableSummary,
    address_of,
    credential_source,
    describe_table,
    find,
    open_client,
    translate_errors,
)
from simplu_worker.aws.sqs_queue import MISSING_QUEUE_CODES, Queue, find_queue_url
from simplu_worker.cache.cache import create_redis_commands
from simplu_worker.commands.check.findings import CheckFacts, Finding, find_oddities, format_hours
from simplu_worker.commands.output import Answer, Line, Table
from simplu_worker.config.settings import Settings, unset_sources
from simplu_worker.consumers.kinesis.fleet.fleet import SCAN_CAPACITY_PER_S
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.stream.client import Stream, StreamGoneError
from simplu_worker.consumers.sqs.receive.redrive_rules import parse_redrive_policy
from simplu_worker.errors import WorkerError
from simplu_worker.feed.destinations import REQUEST_ERRORS, cause_of, connect, region_of
from simplu_worker.feed.feed import read_feed_file
from simplu_worker.feed.feed_file import AllowedHosts, DestinationMembers
from simplu_worker.shards.health.assessment import TAKES_NO_OPERATIONS, ShardObservation, assess
from simplu_worker.shards.health.prober import probe_shard
from simplu_worker.shards.health.trial_write import try_write
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.timing.waits import run_at_once
from simplu_worker.vocabulary import DestinationKind

DEADLINE_S: Final = 10.0
READ_TIMEOUT_S: Final = 8.0  # below DEADLINE_S: the client's own error names the service that hangs
T = TypeVar("T")


class CheckStatus(StrEnum):
    """The state of a dependency."""

    OK = "ok"
    WARNING = "warning"  # it works, with a problem; or no configured feature needs it
    FAILED = "failed"
    OFF = "off"  # not configured, or not there to be asked


class CheckAnswer(msgspec.Struct, frozen=True):
    """The answer of one dependency."""

    result: str
    status: CheckStatus = CheckStatus.OK


class CheckedDependency(msgspec.Struct, frozen=True):
    """A line of the table."""

    dependency: str
    address: str
    status: CheckStatus
    result: str
    seconds: float


async def check_dependency(
    dependency: str, address: str, ask: Callable[[], Awaitable[CheckAnswer]]
) -> CheckedDependency:
    """Call *ask* for at most DEADLINE_S, and time it."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(DEADLINE_S):
            answer = await ask()
    except TimeoutError:
        answer = CheckAnswer(f"no answer within {DEADLINE_S:g} s", CheckStatus.FAILED)
    except WorkerError as exc:
        answer = CheckAnswer(str(exc), CheckStatus.FAILED)
    seconds = round(time.perf_counter() - started, 4)
    return CheckedDependency(dependency, scrub_text(address), answer.status, scrub_text(answer.result), seconds)


async def check_feed(settings: Settings) -> list[CheckedDependency]:
    """Check each destination of FEED_FILE, as far as possible without an event."""
    if settings.feed_file is None:
        return []
    file = read_feed_file(settings.feed_file, settings.feed_allowed_hosts)
    return await asyncio.gather(*(_check_destination(one.terms, settings) for one in file))


async def _check_destination(destination: DestinationMembers, settings: Settings) -> CheckedDependency:
    kind, target = destination.kind, destination.target
    url = urlsplit(target)
    is_of_aws = kind in {DestinationKind.KINESIS, DestinationKind.SQS}

    async def ask() -> CheckAnswer:
        if not is_of_aws:
            return await _connect(url, AllowedHosts.parse(settings.feed_allowed_hosts))
        region = region_of(target, settings.aws_region)
        async with open_client(kind, region=region, read_timeout_s=READ_TIMEOUT_S) as client:
            if kind is DestinationKind.KINESIS:
                return await ask_stream(Stream(client, target), _missing("stream"), {})
            attributes = await find(Queue(client, target).read_attributes(), MISSING_QUEUE_CODES)
        return _missing("queue") if attributes is None else CheckAnswer(f"answers, {attributes.visible_count} waiting")

    address = target if is_of_aws else f"{url.scheme}://{url.netloc}"
    return await check_dependency(f"feed {destination.name}", address, ask)


async def ask_stream(stream: Stream, absent: CheckAnswer, retentions: dict[str, timedelta]) -> CheckAnswer:
    """Return what a stream says of itself, or *absent*; note how long it keeps records."""
    try:
        summary = await stream.describe()
    except StreamGoneError:
        return absent
    retentions[f"stream {stream.name}"] = summary.retention
    kept = f"records kept for {format_hours(summary.retention)}"
    return CheckAnswer(f"{summary.status.lower()}, {summary.open_stream_shard_count} open stream shards, {kept}")


def _missing(what: str) -> CheckAnswer:
    return CheckAnswer(f"the {what} does not exist; create it, or correct its target", CheckStatus.FAILED)


async def _connect(url: SplitResult, allowed: AllowedHosts) -> CheckAnswer:
    has_tls = url.scheme == "https"
    try:
        await connect(url.hostname or "", url.port or (443 if has_tls else 80), allowed, has_tls=has_tls)
    except REQUEST_ERRORS as exc:
        return CheckAnswer(cause_of(exc), CheckStatus.FAILED)
    return CheckAnswer(f"can be connected to{' with TLS' if has_tls else ''}; nothing was sent")


# Each takes a connection, and many shards may be databases of a few servers; it also takes processor time, and more at
# once would not connect within the time of a probe.
SHARDS_AT_ONCE: Final = 16
LEASE_KEY: Final = ("leaseKey",)
BUSINESS_INFO_KEY: Final = ("id",)
CACHE_IS_CLUSTER: Final = (
    "expected one server, or a primary with replicas, got a Redis Cluster, which refuses commands with keys of several "
    "slots; set REDIS_URL to a server without cluster mode"
)
CACHE_EVICTS: Final = (
    "maxmemory-policy {}, Redis may evict versions and the epoch, and stale lists are read again; set noeviction or a "
    "volatile policy, and give entries a time to live"
)
EMPTY: Final = (
    "empty: the schema is created with the first tenant; before tenants move there, run simplu-worker shards upgrade "
    "SHARD --apply"
)


class CheckReport(msgspec.Struct, frozen=True):
    """The result of `check`."""

    dependencies: list[CheckedDependency]
    odd: list[Finding]


async def check(settings: Settings) -> Answer:
    """Check all dependencies that *settings* name; it fails if one failed."""
    report = await check_dependencies(settings)
    rows = [
        (one.dependency, one.address, one.status, one.result, f"{one.seconds * 1000:.0f} ms")
        for one in report.dependencies
    ]
    parts = [
        Table(("dependency", "address", "status", "result", "time"), rows),
        Line("odd:", "bold") if report.odd else None,
        *(Line(f"  {finding}") for finding in report.odd),
        Line(verdict_on(report), "bold"),
    ]
    is_failed = any(dependency.status is CheckStatus.FAILED for dependency in report.dependencies)
    return Answer(report, parts, is_failed=is_failed)


def verdict_on(report: CheckReport) -> str:
    """Return the last line: what failed, else what warns."""
    for status in (CheckStatus.FAILED, CheckStatus.WARNING):
        if names := [one.dependency for one in report.dependencies if one.status is status]:
            return f"{status}: {', '.join(names)}"
    return "nothing failed; see what is odd" if report.odd else "nothing odd"


async def check_dependencies(settings: Settings) -> CheckReport:
    """Contact all dependencies. A failure is in the report."""
    checks = DependencyChecks(settings)
    services = {"kinesis": None, "sqs": None, "dynamodb": settings.dynamodb_endpoint}
    async with AsyncExitStack() as stack:
        shards = await stack.enter_async_context(open_shards(sparing(settings)))
        kinesis, sqs, dynamodb = [
            await stack.enter_async_context(
                open_client(one, region=settings.aws_region, endpoint_url=url, read_timeout_s=READ_TIMEOUT_S)
            )
            for one, url in services.items()
        ]
        answers = await asyncio.gather(
            checks.check_stream(kinesis),
            checks.check_tables(dynamodb),
            checks.check_queues(sqs),
            checks.check_shards(shards),
            checks.check_cache(),
            check_feed(settings),
        )
    credentials = await checks.check_credentials()  # by now AWS has said what it thinks of them
    dependencies = [dependency for answer in (credentials, *answers) for dependency in answer]
    dependencies += [
        CheckedDependency(one.name, one.variable, CheckStatus.OFF, f"not configured, no {one.brings} are read", 0.0)
        for one in unset_sources(settings)
    ]
    odd = find_oddities(checks.facts, settings)
    return CheckReport(
        dependencies, [Finding(scrub_text(one.about), scrub_text(one.problem), one.advice) for one in odd]
    )


def sparing(settings: Settings) -> Settings:
    """Return *settings* with one try at Citrus, and few connections."""
    connections = min(settings.database_max_connections, SHARDS_AT_ONCE // 2)  # beside those of probes
    return settings.model_copy(update={"citrus_retry_attempts": 1, "database_max_connections": connections})


class DependencyChecks:
    """The check of each kind of dependency; `facts` get what the findings need."""

    def __init__(self, settings: Settings) -> None:
        self.facts = CheckFacts()
        self._settings = settings

    async def check_credentials(self) -> list[CheckedDependency]:
        """Check that there are credentials of AWS, which have not expired."""
        source = credential_source()

        async def ask() -> CheckAnswer:
            with translate_errors():
                await source.get_frozen_credentials()
            if source.expired_since is not None:
                return CheckAnswer(
                    f"those found by {source.method} have expired, says AWS; renew them there", CheckStatus.FAILED
                )
            return CheckAnswer(f"found by {source.method}")

        return [await check_dependency("credentials", "AWS", ask)]

    async def check_stream(self, client: Client) -> list[CheckedDependency]:
        """Check the stream, if one is configured."""
        name = self._settings.kinesis_stream_name
        if name is None:
            return []
        stream = Stream(client, name)
        absent = CheckAnswer("does not exist, will be created")
        if not self._settings.kinesis_create_stream:
            absent = CheckAnswer("does not exist; create it, or set KINESIS_CREATE_STREAM=true", CheckStatus.FAILED)
        ask = partial(ask_stream, stream, absent, self.facts.retentions)
        return [await check_dependency("stream", address_of(client, stream.name), ask)]

    async def check_tables(self, client: Client) -> list[CheckedDependency]:
        """Check the lease table, and business-info."""
        leases, info = self._settings.kinesis_application_name, self._settings.dynamodb_business_info_table
        tables = {"business-info": (info, self._check_business_info)}
        if self._settings.kinesis_stream_name is not None:
            tables = {"lease table": (leases, self._check_lease_table)} | tables
        return await asyncio.gather(
            *(
                check_dependency(about, address_of(client, name), partial(ask, client, name))
                for about, (name, ask) in tables.items()
            )
        )

    async def _check_lease_table(self, client: Client, name: str) -> CheckAnswer:
        table: TableSummary | None = await describe_table(client, name)
        if table is None:
            return CheckAnswer("does not exist, will be created")
        if table.key != LEASE_KEY:
            return CheckAnswer(
                f"expected a lease table with the key leaseKey, got the key {', '.join(table.key)}; "
                "set KINESIS_APPLICATION_NAME to a name that no other table has",
                CheckStatus.FAILED,
            )
        answer = await self._check_kcl_leader(client, name)
        if answer is None and 0 < table.read_units < SCAN_CAPACITY_PER_S:
            units = f"provisioned for {table.read_units} read units a second, where the scans of each replica may take"
            answer = CheckAnswer(f"{units} {SCAN_CAPACITY_PER_S:.0f}; switch it to on-demand", CheckStatus.WARNING)
        return answer or CheckAnswer(table.status.lower())

    async def _check_kcl_leader(self, client: Client, name: str) -> CheckAnswer | None:
        table = LeaseTable(client, name)
        watch = kcl_leader_watch(self._settings, table)
        await table.scan()
        await watch.check()
        if watch.follows and watch.leaders is not None:
            return CheckAnswer(f"follows the Kinesis Client Library 3.x at {watch.leaders}, which assigns its leases")
        problem = watch.trouble or watch.outlook
        return None if problem is None else CheckAnswer(problem, CheckStatus.WARNING)

    async def _check_business_info(self, client: Client, name: str) -> CheckAnswer:
        problem = CheckStatus.FAILED if self._settings.provision_on_first_use else CheckStatus.WARNING
        try:
            table = await describe_table(client, name)
        except WorkerError as exc:
            return CheckAnswer(str(exc), problem)
        if table is None:
            return CheckAnswer("does not exist; create it, or set DYNAMODB_BUSINESS_INFO_TABLE to yours", problem)
        if table.key != BUSINESS_INFO_KEY:
            return CheckAnswer(f"expected a table with the key id, got the key {', '.join(table.key)}", problem)
        return CheckAnswer(table.status.lower())

    async def check_queues(self, client: Client) -> list[CheckedDependency]:
        """Check every configured queue."""
        settings = self._settings
        sources = {
            "control queue": settings.sqs_shard_creation_queue_url,
            "order events": settings.sqs_order_events_queue_url,
            "priority order events": settings.sqs_priority_queue_url,
        }
        checks = [
            check_dependency(name, url, partial(self._check_source_queue, client, url))
            for name, url in sources.items()
            if url is not None
        ]
        if (url := settings.dead_letter_queue_url) is not None:
            checks.append(check_dependency("dead letters", url, partial(self._check_dead_letter_queue, client, url)))
        return await asyncio.gather(*checks)

    async def _check_source_queue(self, client: Client, url: str) -> CheckAnswer:
        queue = Queue(client, url)
        attributes = await queue.read_attributes()
        self.facts.queues[f"queue {queue.name}"] = attributes
        if attributes.retention_s is not None:
            self.facts.retentions[f"queue {queue.name}"] = timedelta(seconds=attributes.retention_s)
        if (policy := parse_redrive_policy(attributes.redrive_policy)) is not None:
            with contextlib.suppress(WorkerError):  # the worker itself does not use the redrive target
                if (target := await find_queue_url(client, policy.target_name)) is not None:
                    self.facts.redrive_targets[f"queue {queue.name}"] = await Queue(client, target).read_attributes()
        return CheckAnswer(f"answers, {attributes.visible_count} waiting, {attributes.in_flight_count} in flight")

    async def _check_dead_letter_queue(self, client: Client, url: str) -> CheckAnswer:
        queue = Queue(client, url)
        if self._settings.sqs_dead_letter_queue_url is None and await find_queue_url(client, queue.name) is None:
            return CheckAnswer("does not exist yet: the worker creates it at its start")
        attributes = await queue.read_attributes()
        if attributes.retention_s is not None:
            self.facts.dead_letters_retention = timedelta(seconds=attributes.retention_s)
        return CheckAnswer(f"answers, {attributes.visible_count} waiting")

    async def check_shards(self, shards: Shards) -> list[CheckedDependency]:
        """Check Citrus, and every shard that it or the shard map names."""
        known: list[ShardAddress] = []

        async def ask_citrus() -> CheckAnswer:
            known.extend(await shards.locator.list_shards())
            return CheckAnswer(f"answers, {len(known)} shards")

        checks = []
        if isinstance(shards.locator, CitrusClient):
            checks.append(await check_dependency("Citrus", self._settings.citrus_server_url or "", ask_citrus))
        else:
            known = await shards.locator.list_shards()
        return checks + await run_at_once(partial(self._check_shard, shards), known, most=SHARDS_AT_ONCE)

    async def check_cache(self) -> list[CheckedDependency]:
        """Check Redis. A failure is a warning: operations continue without Redis."""
        url = self._settings.redis_url
        if url is None:
            return []
        redis = create_redis_commands(url.get_secret_value())

        async def ask() -> CheckAnswer:
            try:
                about = await redis.read_info()
            except WorkerError as exc:
                return CheckAnswer(str(exc), CheckStatus.WARNING)
            if about.get("redis_mode") == "cluster":
                return CheckAnswer(CACHE_IS_CLUSTER, CheckStatus.WARNING)
            if (policy := about.get("maxmemory_policy") or "").startswith("allkeys"):
                return CheckAnswer(CACHE_EVICTS.format(policy), CheckStatus.WARNING)
            return CheckAnswer(f"Redis {about.get('redis_version')}, epoch {about['epoch'] or 0}")

        try:
            return [await check_dependency("Redis", redis.place, ask)]
        finally:
            await redis.close()

    async def _check_shard(self, shards: Shards, address: ShardAddress) -> CheckedDependency:
        async def ask() -> CheckAnswer:
            pool = shards.pools.ensure_pool(address)
            probe = await probe_shard(pool)
            findings = assess(ShardObservation(probe=probe, listed=address)).findings
            for finding in findings:
                if finding.problem in TAKES_NO_OPERATIONS:
                    return CheckAnswer(f"shard {address.shard_id}: {finding.detail}", CheckStatus.FAILED)
            await try_write(pool)
            content = f"schema {probe.schema_version}, {probe.tenant_count} tenants"
            if probe.schema_version is None:
                content = EMPTY
            return CheckAnswer(
                "; ".join([f"PostgreSQL {probe.server_version}, {content}", *(one.detail for one in findings)]),
                CheckStatus.WARNING if findings else CheckStatus.OK,
            )

        return await check_dependency(f"shard {address.shard_id}", address.place, ask)
