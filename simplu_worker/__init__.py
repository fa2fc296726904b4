"""Apply resource operations from Kinesis and SQS to the right Postgres shard, exactly once and in order."""

__version__ = "1.0.0"
