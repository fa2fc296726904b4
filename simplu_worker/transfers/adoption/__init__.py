"""The adoption of another program's shard."""
