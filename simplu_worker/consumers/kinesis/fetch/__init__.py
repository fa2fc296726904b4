"""Records read from a stream shard, within the memory and the read quota of a replica."""
