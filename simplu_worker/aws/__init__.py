"""The doors to AWS: clients and their errors, SQS, DynamoDB tables."""
