"""`replay`: the stream is read again, beside running workers."""
