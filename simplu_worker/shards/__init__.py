"""Everything about Postgres shards: the homes of tenants, the applying of operations, provisioning."""
