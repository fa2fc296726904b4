"""The door to Kinesis: stream shards, records, positions, aggregates."""
