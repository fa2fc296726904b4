"""`python -m support.aws.command_line SERVICE OPERATION --member VALUE …`: a request as the AWS CLI 2 makes it.

Version 2 is no package of Python. This reads the arguments by botocore's own model of the service, as the CLI does:
`--queue-url` is member QueueUrl, members of structures are JSON, and `--cli-binary-format` says that blobs are text.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import botocore.session
from botocore import xform_name

DELAY_S = 1  # of the CLI: 10


def parse_arguments(arguments: list[str], shape: Any) -> dict[str, Any]:
    """Return the parameters of a request of *shape*; raise KeyError for an option that it does not have."""
    members = {xform_name(name, "-"): name for name in shape.members}
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    if given.pop("--cli-binary-format", None) != "raw-in-base64-out":
        assert not any(shape.members[name].type_name == "blob" for name in shape.members), "blobs are base64 by default"
    parameters = {}
    for option, text in given.items():
        name = members[option.removeprefix("--")]
        is_text = shape.members[name].type_name in {"string", "blob"}
        parameters[name] = text if is_text else json.loads(text)
    return parameters


def wait(client: Any, waiters: Any, arguments: list[str]) -> None:
    name, *options = arguments
    waiter = client.get_waiter(name.replace("-", "_"))
    operation = waiters.get_waiter("".join(word.capitalize() for word in name.split("-"))).operation
    shape = client.meta.service_model.operation_model(operation).input_shape
    waiter.wait(**parse_arguments(options, shape), WaiterConfig={"Delay": DELAY_S})


def main() -> None:
    service, operation, *arguments = sys.argv[1:]
    session = botocore.session.get_session()
    client: Any = session.create_client(service)
    if operation == "wait":
        wait(client, session.get_waiter_model(service), arguments)
        return
    method = operation.replace("-", "_")
    model = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method])
    answer = getattr(client, method)(**parse_arguments(arguments, model.input_shape))
    answer.pop("ResponseMetadata")
    print(json.dumps(answer, default=str))  # noqa: T201  # as the AWS CLI does


if __name__ == "__main__":
    main()
