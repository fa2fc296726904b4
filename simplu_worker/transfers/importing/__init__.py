"""The import of another database: its rows become resources of tenants, each on its own shard."""
