"""What a Postgres shard lost, and from where the stream is read again for it."""
