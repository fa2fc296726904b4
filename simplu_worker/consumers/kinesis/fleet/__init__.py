"""The replicas that share a stream: who reads which stream shard."""
