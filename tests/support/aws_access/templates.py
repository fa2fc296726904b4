"""The templates of deploy/aws, created in moto."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import botocore.session
from support.requires import ROOT

from simplu_local.aws_server.account import REGION
from simplu_local.stack.aws import ACCESS_KEY_ID, CREDENTIALS, SECRET_ACCESS_KEY

TEMPLATES = ROOT / "deploy" / "aws"


class Account:
    """An account of AWS at *endpoint_url*, which is moto's."""

    def __init__(self, endpoint_url: str) -> None:
        self._endpoint_url = endpoint_url

    @contextmanager
    def client(self, service: str) -> Iterator[Any]:
        """Yield a client; its connections are closed at the end."""
        client = botocore.session.get_session().create_client(
            service,
            region_name=REGION,
            endpoint_url=self._endpoint_url,
            aws_access_key_id=ACCESS_KEY_ID,
            aws_secret_access_key=SECRET_ACCESS_KEY,
        )
        try:
            yield client
        finally:
            client.close()

    def environment(self) -> dict[str, str]:
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self._endpoint_url, "AWS_REGION": REGION}

    def create(self, name: str, parameters: Mapping[str, str]) -> dict[str, str]:
        with self.client("cloudformation") as cloudformation:
            cloudformation.create_stack(
                StackName=name,
                TemplateBody=(TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8"),
                Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
                Capabilities=["CAPABILITY_IAM"],
            )
            (stack,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE", stack.get("StackStatusReason")
        return {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}

    def resources(self, name: str, kind: str) -> dict[str, str]:
        """Return the physical ids of the resources of *kind* of a stack, by their logical ids."""
        with self.client("cloudformation") as cloudformation:
            found = cloudformation.describe_stack_resources(StackName=name)["StackResources"]
        # moto lists a resource whose condition is false as well, without a type.
        return {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in found if one.get("ResourceType") == kind}

    def documents(self, name: str) -> dict[str, Any]:
        documents = {}
        with self.client("iam") as iam:
            for logical, arn in self.resources(name, "AWS::IAM::ManagedPolicy").items():
                version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
                document = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
                documents[logical] = json.loads(document) if isinstance(document, str) else document
        return documents
