"""Apply resource operations from Kinesis and SQS to the right Postgres shard, exactly once and in order."""

__version__ = "0.1.0"
