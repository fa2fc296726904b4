"""Passwords by IAM are those that AWS's own tools make."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import botocore.session
import pytest

from simplu_worker.aws.clients import credential_source, make_rds_password, region_of_host

HOST = "shard-1.cluster-abc.eu-west-3.rds.amazonaws.com"


@pytest.mark.parametrize(
    ("host", "region"),
    [
        (HOST, "eu-west-3"),
        ("shard-1.abc.cn-north-1.rds.amazonaws.com.cn", "cn-north-1"),
        ("shard-1.abc.rds.cn-northwest-1.amazonaws.com.cn", "cn-northwest-1"),
        ("db.example.com", None),
        ("rds.amazonaws.com.example.com", None),
    ],
)
def test_region_is_that_in_the_name_of_an_endpoint(host: str, region: str | None) -> None:
    assert region_of_host(host) == region


@pytest.mark.parametrize("token", [None, "session/token+="])
async def test_password_is_that_of_botocore(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    if token is not None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    credential_source.cache_clear()
    client = botocore.session.Session().create_client("rds", region_name="eu-west-3")
    theirs = client.generate_db_auth_token(HOST, 5432, "worker@home")
    ours = await make_rds_password(HOST, 5432, "worker@home")
    credential_source.cache_clear()

    assert ours.partition("?")[0] == theirs.partition("?")[0]
    queries = [parse_qs(urlsplit(f"//{password}").query) for password in (ours, theirs)]
    for query in queries:
        (signature,) = query.pop("X-Amz-Signature")
        assert len(signature) == 64
        query.pop("X-Amz-Date")
    assert queries[0] == queries[1]
    assert ("X-Amz-Security-Token" in queries[0]) is (token is not None)
