"""The state of a replica as it changes: histories, advice about held targets, and streams of events."""
