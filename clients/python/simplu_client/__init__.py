"""Sends operations, order events and control messages to simplu-worker, and waits for their outcomes."""

from simplu_client.batcher import Limits
from simplu_client.client import Client, Position, Sent
from simplu_client.errors import (
    ClosedError,
    Failure,
    InvalidOperationError,
    NotSentError,
    OperationFailedError,
    OperationLostError,
    OperationRejectedError,
    QueueFullError,
    SimpluError,
    UnexpectedAnswerError,
    WaitTimeoutError,
)
from simplu_client.messages import ControlMessage, Operation, OrderEvent
from simplu_client.outcomes import Outcome

__all__ = [
    "Client",
    "ClosedError",
    "ControlMessage",
    "Failure",
    "InvalidOperationError",
    "Limits",
    "NotSentError",
    "Operation",
    "OperationFailedError",
    "OperationLostError",
    "OperationRejectedError",
    "OrderEvent",
    "Outcome",
    "Position",
    "QueueFullError",
    "Sent",
    "SimpluError",
    "UnexpectedAnswerError",
    "WaitTimeoutError",
]
