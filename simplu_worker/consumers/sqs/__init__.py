"""SQS: one consumer a queue; a message is deleted only after its effect is committed."""
