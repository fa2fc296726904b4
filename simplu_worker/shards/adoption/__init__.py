"""Taking over another program's shard."""
