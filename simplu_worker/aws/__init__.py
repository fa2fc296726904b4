"""How AWS is asked: clients, errors, the door to SQS, DynamoDB tables."""
