"""Read records from Kinesis and SQS, apply them on shards, and skip a record only when it is stored."""
