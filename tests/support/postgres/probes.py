"""The facts of a healthy shard, for tests."""

from simplu_worker.shards.health.assessment import ShardProbe

WELL = ShardProbe(
    server_version="17.2",
    version_number=170002,
    is_standby=False,
    is_read_only=False,
    skew_s=0.0,
    response_s=0.001,
    connections_used=5,
    connections_max=97,
    standby_count=0,
    schema_version=1,
    tenant_count=3,
)
