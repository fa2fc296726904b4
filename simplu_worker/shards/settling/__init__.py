"""What a worker knows of moves: whether one is under way for a tenant, and how to end one whose mover was killed."""
