"""The commands for people: each is one async function that prints its result and returns the exit status."""
