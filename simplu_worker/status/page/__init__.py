"""The status page: one document, its style and its scripts, and the server's part of it."""
