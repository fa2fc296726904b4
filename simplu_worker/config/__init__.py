"""Settings from environment variables and files, and the page that documents them."""
