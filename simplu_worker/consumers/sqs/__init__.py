"""SQS: one consumer for each queue; a message is deleted only after its effect is committed."""
