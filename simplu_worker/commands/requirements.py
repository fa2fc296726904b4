"""Check what a command needs: settings that are present, a tenant with valid names, a known shard. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from simplu_worker.config.settings import Settings
from simplu_worker.config.variable_rules import ROUTES, set_of
from simplu_worker.errors import ConfigurationError, PermanentError
from simplu_worker.operations.operation import ID_MAX, is_id, tenant_id_of
from simplu_worker.shards.postgres.address import ShardAddress


def require_settings(
    settings: Settings, *, routes: bool = False, stream: bool = False, queue: str | None = None
) -> None:
    """Raise ConfigurationError, which names every missing variable, unless the required settings are present.

    *queue* is the name of the variable with the URL of a required queue.
    """
    problems = []
    if stream and settings.kinesis_stream_name is None:
        problems.append("KINESIS_STREAM_NAME: expected the stream to put operations on, got nothing; set it")
    if queue is not None and getattr(settings, queue.lower()) is None:
        problems.append(f"{queue}: expected the queue to send order events to, got nothing; set it")
    if routes and not set_of(settings, *ROUTES):
        problems.append(f"{ROUTES[0]}: expected a way to find shards, {' or '.join(ROUTES)}, got none; set one")
    if problems:
        raise ConfigurationError(*problems)


def parse_tenant_id(business_id: str, location_id: str) -> str:
    """Return the tenant id of two names from the command line. Raises PermanentError if one is invalid."""
    for name, value in {"business": business_id, "location": location_id}.items():
        if not is_id(value):
            raise PermanentError(f"{name}: expected 1 to {ID_MAX} characters of UTF-8, got {len(value)}")
    return tenant_id_of(business_id, location_id)


def known_shard(shards: Iterable[ShardAddress], shard_id: str) -> ShardAddress:
    """Return the one of *shards* that the command line names. Raises PermanentError if it is none of them."""
    known = {address.shard_id: address for address in shards}
    if shard_id not in known:
        raise PermanentError(f"expected a shard out of {', '.join(sorted(known)) or 'none'}; got {shard_id}")
    return known[shard_id]
