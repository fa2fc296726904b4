"""The form of a dead letter, and the queue that stores it."""
