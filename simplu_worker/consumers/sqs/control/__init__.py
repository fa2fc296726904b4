"""The consumer of control messages."""
