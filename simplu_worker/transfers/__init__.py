"""What moves whole tenants and shards: moves, imports, restores and adoption; run by commands, never by the daemon."""
