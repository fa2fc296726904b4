"""The commands about the feed of changes."""
