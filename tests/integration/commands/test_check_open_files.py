"""`check` names a limit on open files that is too low for the settings."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import msgspec
import pytest

NOWHERE = "http://127.0.0.1:1"
ENVIRON = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "y",
    "AWS_REGION": "eu-west-1",
    "AWS_ENDPOINT_URL": NOWHERE,
    "SQS_ORDER_EVENTS_QUEUE_URL": f"{NOWHERE}/queue",
    "SQS_DEAD_LETTER_QUEUE_URL": f"{NOWHERE}/dead-letters",
    "DATABASE_HOST": "127.0.0.1",
    "DATABASE_PORT": "1",
    "DATABASE_NAME": "d",
    "DATABASE_USERNAME": "u",
}


@pytest.mark.slow(3)
@pytest.mark.parametrize(("open_files", "is_named"), [(400, True), (1024, False)])
def test_check_names_a_low_limit_on_open_files(open_files: int, is_named: bool) -> None:  # noqa: FBT001
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))

    ended = subprocess.run(
        [sys.executable, "-m", "simplu_worker", "check", "--json"],
        env={"PATH": os.environ["PATH"]} | ENVIRON,
        preexec_fn=limit,
        capture_output=True,
        check=False,
    )
    odd = {finding["about"] for finding in msgspec.json.decode(ended.stdout)["odd"]}
    assert ("RLIMIT_NOFILE" in odd) is is_named
