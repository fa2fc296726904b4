"""Access to Kinesis: stream shards, records, positions, aggregates."""
