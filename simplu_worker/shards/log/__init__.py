"""What a shard keeps about operations beside the log itself: failed messages, rejected records; and for how long."""
