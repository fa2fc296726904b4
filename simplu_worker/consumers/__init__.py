"""Read records from Kinesis and SQS, hand them to shards, and pass over them only when they are safe."""
