"""What a router raises instead of an answer that could be empty, old, or another tenant's."""

from __future__ import annotations


class RouterError(Exception):
    """The router gives no connection; the message says why, and what to do."""


class TenantUnknownError(RouterError):
    """All shards answered, and none has the tenant."""


class ShardUnavailableError(RouterError):
    """A shard that may have the tenant does not answer now: try again later."""


class NotSeenYetError(RouterError):
    """The tenant's shard has not applied the operation in *seen* yet: try again later."""
