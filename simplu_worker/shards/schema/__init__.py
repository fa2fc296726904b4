"""The schema of a shard, and its upgrades."""
