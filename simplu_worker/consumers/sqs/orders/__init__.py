"""The consumer of order events."""
