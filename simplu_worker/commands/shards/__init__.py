"""`simplu-worker shards`."""
