"""Which operations are held, and up to where the checkpoint may go. Pure."""
