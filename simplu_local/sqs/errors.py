"""The errors of the local SQS, by their names in its protocols. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from simplu_local.aws_server.errors import AwsError

# By shape: the code of the error in the query protocol, where it differs. AWS JSON answers with both: the shape in
# `__type`, the older code in the header x-amzn-query-error, which clients use. API_* pages, "Errors".
QUERY_CODES = {
    "BatchEntryIdsNotDistinct": "AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
    "BatchRequestTooLong": "AWS.SimpleQueueService.BatchRequestTooLong",
    "EmptyBatchRequest": "AWS.SimpleQueueService.EmptyBatchRequest",
    "InvalidBatchEntryId": "AWS.SimpleQueueService.InvalidBatchEntryId",
    "KmsAccessDenied": "KMS.AccessDeniedException",
    "KmsDisabled": "KMS.DisabledException",
    "KmsInvalidKeyUsage": "KMS.InvalidKeyUsageException",
    "KmsInvalidState": "KMS.InvalidStateException",
    "KmsNotFound": "KMS.NotFoundException",
    "KmsOptInRequired": "KMS.OptInRequired",
    "KmsThrottled": "KMS.ThrottlingException",
    "MessageNotInflight": "AWS.SimpleQueueService.MessageNotInflight",
    "PurgeQueueInProgress": "AWS.SimpleQueueService.PurgeQueueInProgress",
    "QueueDoesNotExist": "AWS.SimpleQueueService.NonExistentQueue",
    "QueueNameExists": "QueueAlreadyExists",
    "TooManyEntriesInBatchRequest": "AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
    "UnsupportedOperation": "AWS.SimpleQueueService.UnsupportedOperation",
}
# Errors of every AWS service that SQS's own model does not contain: "Common Errors".
COMMON_CODES = {
    "InvalidParameterValueException": "InvalidParameterValue",
    "MissingRequiredParameterException": "MissingParameter",
}
COMMON_SHAPES = frozenset({*COMMON_CODES, "InternalFailure", "SerializationException", "UnknownOperationException"})


class SqsError(AwsError):
    """An error answer of SQS. *shape* is its name in the model; `code` is its name in the query protocol."""

    def __init__(self, shape: str, message: str, *, status: int = 400) -> None:
        super().__init__(QUERY_CODES.get(shape) or COMMON_CODES.get(shape) or shape, message, status=status)
        self.shape = shape

    def __repr__(self) -> str:
        return f"SqsError({self.shape}: {self.message})"

    @property
    def type_name(self) -> str:
        """The `__type` of the answer."""
        namespace = "com.amazon.coral.service" if self.shape in COMMON_SHAPES else "com.amazonaws.sqs"
        return f"{namespace}#{self.shape}"

    @property
    def headers(self) -> Mapping[str, str]:
        """The header of services that once had the query protocol: awsQueryCompatible."""
        return {"x-amzn-query-error": f"{self.code};{'Sender' if self.is_sender_fault else 'Receiver'}"}

    @property
    def is_sender_fault(self) -> bool:
        """Whether the same request would fail again."""
        return self.status < 500


def queue_not_found() -> SqsError:
    """Return the error for a queue that does not exist."""
    return SqsError("QueueDoesNotExist", "The specified queue does not exist.")


def missing_parameter(parameter: str) -> SqsError:
    """Return the error for a missing parameter that this queue requires."""
    message = f"The request must contain the parameter {parameter}."
    return SqsError("MissingRequiredParameterException", message)


def invalid_parameter(parameter: str, value: object, reason: str) -> SqsError:
    """Return the error for a value that the action rejects."""
    message = f"Value {value} for parameter {parameter} is invalid. Reason: {reason}"
    return SqsError("InvalidParameterValueException", message)
