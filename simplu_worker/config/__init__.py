"""Settings from environment variables and files."""
