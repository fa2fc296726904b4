"""What a dead letter is, and the queue that stores it."""
