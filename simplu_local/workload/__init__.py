"""Operations and messages to send, and a model of their effects."""
