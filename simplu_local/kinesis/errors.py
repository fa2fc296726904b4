"""The errors of the local Kinesis, by their names in its protocol. Pure."""

from __future__ import annotations

from simplu_local.aws_server.errors import AwsError


class KinesisError(AwsError):
    """An error answer of Kinesis: its *code* is listed in "Common Errors" or on the action's page."""


def resource_not_found(message: str) -> KinesisError:
    """Return the error for a stream or stream shard that does not exist."""
    return KinesisError("ResourceNotFoundException", message)


def resource_in_use(message: str) -> KinesisError:
    """Return the error for a stream in a state that does not allow the action."""
    return KinesisError("ResourceInUseException", message)


def invalid_argument(message: str) -> KinesisError:
    """Return the error for an argument that the action rejects."""
    return KinesisError("InvalidArgumentException", message)


def throughput_exceeded(message: str) -> KinesisError:
    """Return the error for a stream shard that is read or written too often, or too much."""
    return KinesisError("ProvisionedThroughputExceededException", message)
