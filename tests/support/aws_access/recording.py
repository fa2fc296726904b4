"""The calls of AWS that programs have made, as IAM names them: an action on a resource."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from simplu_local.aws_server.account import ACCOUNT_ID, REGION

HOOK = Path(__file__).with_name("sitecustomize.py")
# Operations on a consumer of a stream, whose resource is the consumer: service authorization reference, Kinesis.
OF_CONSUMERS = ("DescribeStreamConsumer", "DeregisterStreamConsumer", "SubscribeToShard")


class Access(NamedTuple):
    """A call as IAM judges it."""

    action: str
    resource: str


class RecordedCall(NamedTuple):
    """A call, and the arguments of the program that made it."""

    arguments: tuple[str, ...]
    access: Access


def install_hook(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copy(HOOK, folder)


def recorded_calls(folder: Path) -> list[RecordedCall]:
    lines = (folder / "calls.jsonl").read_text(encoding="utf-8").splitlines()
    return [RecordedCall(tuple(one["arguments"]), access_of(one)) for one in map(json.loads, lines)]


def access_of(line: Mapping[str, Any]) -> Access:
    """Return action and resource of a line; a batch needs the permission of its single call."""
    service, operation, names = line["service"], line["operation"], line["names"]
    if service == "sqs":
        name = names.get("QueueName") or names["QueueUrl"].rpartition("/")[2]
        return Access(f"sqs:{operation.removesuffix('Batch')}", name)
    if service == "dynamodb":
        return Access(f"dynamodb:{operation}", f"table/{names['TableName']}")
    if service != "kinesis":
        raise ValueError(f"expected a call of kinesis, dynamodb or sqs, got {service}")
    return Access(f"kinesis:{operation}", _stream_resource(operation, names))


def _stream_resource(operation: str, names: Mapping[str, Any]) -> str:
    if "ConsumerARN" in names:
        return "stream/" + names["ConsumerARN"].rpartition(":stream/")[2]  # type: ignore[no-any-return]
    name = names.get("StreamName") or names.get("StreamARN") or names["KINESIS_STREAM_NAME"]
    stream = f"stream/{name.rpartition('/')[2]}"
    return f"{stream}/consumer/{names['ConsumerName']}:0" if operation in OF_CONSUMERS else stream


class Policy:
    """The statements of a policy: pairs of an action and a resource, both without wildcards but for consumers."""

    def __init__(self, name: str, document: Mapping[str, Any]) -> None:
        self.name = name
        self.allowed = sorted({pair for one in document["Statement"] for pair in _pairs(one)})

    def allows(self, access: Access) -> bool:
        return any(_covers(pair, access) for pair in self.allowed)


def refused(policies: Iterable[Policy], calls: Iterable[Access]) -> list[Access]:
    held = list(policies)
    return sorted({call for call in calls if not any(policy.allows(call) for policy in held)})


def superfluous(policies: Iterable[Policy], calls: Iterable[Access]) -> list[tuple[str, Access]]:
    """Return the pairs of *policies* for which there is no call, each with the name of its policy."""
    made = set(calls)
    return [
        (policy.name, pair)
        for policy in policies
        for pair in policy.allowed
        if not any(_covers(pair, call) for call in made)
    ]


def _covers(pair: Access, call: Access) -> bool:
    return call.action == pair.action and fnmatchcase(call.resource, pair.resource)


def _pairs(statement: Mapping[str, Any]) -> Iterator[Access]:
    if statement["Effect"] != "Allow" or not statement.keys() <= {"Sid", "Effect", "Action", "Resource"}:
        raise ValueError(f"expected Allow with Action and Resource alone, got {statement}")
    for action in _listed(statement["Action"]):
        for arn in _listed(statement["Resource"]):
            service = action.partition(":")[0]
            prefix = f"arn:aws:{service}:{REGION}:{ACCOUNT_ID}:"
            if not arn.startswith(prefix) or "*" in action:
                raise ValueError(f"expected an action of {prefix}, got {action} on {arn}")
            yield Access(action, arn.removeprefix(prefix))


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
