"""The positions of stream shards, stored on every Postgres shard beside the effects."""
