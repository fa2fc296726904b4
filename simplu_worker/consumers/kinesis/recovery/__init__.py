"""Commits that a Postgres shard lost, and the position from which the stream is read again for it."""
