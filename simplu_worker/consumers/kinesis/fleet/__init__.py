"""The replicas that share a stream: which of them reads which stream shard."""
