"""A faithful local SQS."""
