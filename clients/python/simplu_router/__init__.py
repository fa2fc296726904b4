"""Connections for reading one tenant's rows, on the shard where the tenant lives."""

from simplu_router.errors import NotSeenYetError, RouterError, ShardUnavailableError, TenantUnknownError
from simplu_router.places import Citrus, MapFile, Shard
from simplu_router.router import Router

__all__ = [
    "Citrus",
    "MapFile",
    "NotSeenYetError",
    "Router",
    "RouterError",
    "Shard",
    "ShardUnavailableError",
    "TenantUnknownError",
]
