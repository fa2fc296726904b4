"""A faithful local Kinesis."""
