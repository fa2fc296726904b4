"""The errors of the local Kinesis, as its protocol names them."""

from __future__ import annotations

# Long enough for botocore's reader, short enough for a log line.
MAX_MESSAGE_LENGTH = 500


class KinesisError(Exception):
    """An answer with an error. *code* is the `__type` of the answer, see "Common Errors" and each action's page."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(message[:MAX_MESSAGE_LENGTH])
        self.code = code
        self.message = message[:MAX_MESSAGE_LENGTH]
        self.status = status

    def __repr__(self) -> str:
        return f"KinesisError({self.code}: {self.message})"


def resource_not_found(message: str) -> KinesisError:
    """Return the error for a stream or stream shard that is not there."""
    return KinesisError("ResourceNotFoundException", message)


def resource_in_use(message: str) -> KinesisError:
    """Return the error for a stream whose state does not allow the action now."""
    return KinesisError("ResourceInUseException", message)


def invalid_argument(message: str) -> KinesisError:
    """Return the error for an argument that the action refuses."""
    return KinesisError("InvalidArgumentException", message)


def throughput_exceeded(message: str) -> KinesisError:
    """Return the error for a stream shard that is read or written too often, or too much."""
    return KinesisError("ProvisionedThroughputExceededException", message)
