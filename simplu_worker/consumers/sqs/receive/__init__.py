"""Messages from a queue to a handler, and back or away."""
