"""Enhanced fan-out of the local Kinesis: registered consumers, and subscriptions to stream shards."""
