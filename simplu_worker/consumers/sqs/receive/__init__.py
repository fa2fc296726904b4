"""Receive messages from a queue, hand them to a handler, and carry out its verdicts."""
