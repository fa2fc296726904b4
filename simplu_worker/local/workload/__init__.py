"""Operations and messages to send, and a model of what they do."""
