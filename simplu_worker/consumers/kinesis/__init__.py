"""Kinesis: leases in the Kinesis Client Library's table, one reader a stream shard."""
