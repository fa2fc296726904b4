"""From a decoded operation to the lane of its Postgres shard."""
