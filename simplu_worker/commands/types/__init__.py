"""`simplu-worker types`: the business types of the shards."""
