"""The feed: every change on the shards, as an event, in order, to the destinations of `FEED_FILE`."""
