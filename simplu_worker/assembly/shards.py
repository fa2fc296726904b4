"""Open the access to the shards."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final
from urllib.parse import quote

import msgspec

from simplu_worker.business_info import BusinessFinder
from simplu_worker.cache.invalidations import OnChange, ignore_changes
from simplu_worker.config.settings import NO_ROUTE, Settings
from simplu_worker.errors import ConfigurationError, PermanentError
from simplu_worker.operations.limits import Limit
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator, StaticMap, read_shard_map
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.shards.settling import MoveSettler
from simplu_worker.shards.tenants.deletion import Destroyer
from simplu_worker.shards.tenants.provisioning import FirstUse, Provisioner
from simplu_worker.shards.tenants.resource_changes import ResourceChanges

ONLY_SHARD_ID: Final = "database"  # the id of the one shard that DATABASE_* name


class Shards(msgspec.Struct, frozen=True):
    """Access to the shards."""

    locator: Locator
    pools: Pools
    commits: ReplicationWaiter
    directory: Directory
    gateway: ShardGateway
    provisioner: Provisioner
    destroyer: Destroyer
    changes: ResourceChanges


@contextlib.asynccontextmanager
async def open_shards(
    settings: Settings, *, on_change: OnChange = ignore_changes, business_info: BusinessFinder | None = None
) -> AsyncIterator[Shards]:
    """Open access to the shards; *on_change* gets the changed resources.

    With *business_info* a tenant is made at its first use.
    """
    async with AsyncExitStack() as stack:
        pools = await stack.enter_async_context(
            Pools(size=settings.database_pool_size, max_connections=settings.database_max_connections)
        )
        locator = await stack.enter_async_context(_open_locator(settings))
        commits = ReplicationWaiter(pools)
        directory = Directory(locator, pools, settler=MoveSettler(pools, commits))
        tenant_wait = timedelta(seconds=settings.tenant_wait_seconds)
        provisioner = Provisioner(locator, directory, pools, on_change=on_change, commits=commits)
        yield Shards(
            locator=locator,
            pools=pools,
            commits=commits,
            directory=directory,
            gateway=ShardGateway(
                directory,
                locator,
                pools,
                tenant_wait=tenant_wait,
                default_limit=Limit(settings.tenant_operations_per_second, settings.tenant_bytes_per_second),
                on_change=on_change,
                commits=commits,
                first_use=None if business_info is None else FirstUse(business_info, provisioner, locator, pools),
            ),
            provisioner=provisioner,
            destroyer=Destroyer(locator, directory, pools, commits=commits),
            changes=ResourceChanges(directory, pools, on_change=on_change, commits=commits),
        )


@contextlib.asynccontextmanager
async def _open_locator(settings: Settings) -> AsyncIterator[Locator]:
    allowed_hosts = settings.database_allowed_hosts
    if settings.citrus_server_url is not None:
        from simplu_worker.shards.routing.citrus import open_citrus

        api_key = settings.citrus_api_key
        async with open_citrus(
            settings.citrus_server_url,
            api_key=None if api_key is None else api_key.get_secret_value(),
            timeout_s=settings.citrus_timeout / 1000,
            attempts=settings.citrus_retry_attempts,
            allowed_hosts=allowed_hosts,
        ) as citrus:
            yield citrus
    elif settings.shard_map_file is not None:
        yield StaticMap(read_shard_map(settings.shard_map_file, allowed_hosts))
    elif settings.database_host is not None:
        yield StaticMap(ShardMap(shards=(only_shard(settings),)))
    else:
        raise ConfigurationError(NO_ROUTE)


def only_shard(settings: Settings) -> MappedShard:
    """Return the shard that DATABASE_* name. Raises ConfigurationError for a host that is not allowed."""
    shard = MappedShard(shard_id=ONLY_SHARD_ID, connection_string=_only_connection_string(settings))
    try:
        shard.address.validate(settings.database_allowed_hosts)
    except PermanentError as exc:
        raise ConfigurationError(f"DATABASE_HOST: {exc}") from None
    return shard


def _only_connection_string(settings: Settings) -> str:
    password = settings.database_password
    userinfo = quote(settings.database_username or "", safe="")
    if password is not None:
        userinfo += ":" + quote(password.get_secret_value(), safe="")
    host = settings.database_host or ""
    place = f"[{host}]" if ":" in host else quote(host, safe="")  # a socket's folder has slashes
    return f"postgresql://{userinfo}@{place}:{settings.database_port}/{quote(settings.database_name or '', safe='')}"
