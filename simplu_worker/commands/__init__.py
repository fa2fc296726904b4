"""The commands for people: each is one async function that prints what it found and returns the exit status."""
