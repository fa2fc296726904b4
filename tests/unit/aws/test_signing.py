"""Requests have botocore's signature. No request leaves this machine."""

from __future__ import annotations

import io
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import NoCredentialsError
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.aws.signing import PostSigner

KEYS = ReadOnlyCredentials("AKID", "secret/+", None)
TEMPORARY = ReadOnlyCredentials("ASIA", "another", "token==")
HEADERS = {
    "X-Amz-Target": "Kinesis_20131202.GetRecords",
    "Content-Type": "application/x-amz-json-1.1",
    "User-Agent": "not signed",
    "amz-sdk-request": "attempt=1",
}
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126))


def signed(
    url: str = "https://kinesis.eu-west-1.amazonaws.com/",
    *,
    method: str = "POST",
    data: Any = b"{}",
    headers: dict[str, str] | None = None,
    keys: ReadOnlyCredentials | None = KEYS,
    service: str = "kinesis",
) -> AWSRequest:
    """Return a request that is signed here."""
    request = AWSRequest(method, url, data=data, headers=HEADERS if headers is None else headers)
    PostSigner(keys, service, "eu-west-1").add_auth(request)
    return request


def signature_of(request: AWSRequest, keys: ReadOnlyCredentials, service: str) -> str:
    """Return the `Authorization` that botocore gives a request at the time of its date."""
    auth = SigV4Auth(keys, service, "eu-west-1")
    bare = AWSRequest(request.method, request.url, data=request.data)
    for name, value in request.headers.items():
        if name != "Authorization":
            bare.headers[name] = value
    bare.context["timestamp"] = request.headers["X-Amz-Date"]
    signature = auth.signature(auth.string_to_sign(bare, auth.canonical_request(bare)), bare)
    names = auth.signed_headers(auth.headers_to_sign(bare))
    return f"AWS4-HMAC-SHA256 Credential={auth.scope(bare)}, SignedHeaders={names}, Signature={signature}"


@given(
    headers=st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z-]{0,9}", fullmatch=True), TEXTS, max_size=4),
    data=st.binary(max_size=40),
    keys=st.sampled_from([KEYS, TEMPORARY]),
    url=st.sampled_from(["https://sqs.eu-west-1.amazonaws.com", "http://localhost:4566/", "https://[::1]:443/"]),
    service=st.sampled_from(["sqs", "dynamodb"]),
)
def test_signature_is_that_of_botocore(
    headers: dict[str, str], data: bytes, keys: ReadOnlyCredentials, url: str, service: str
) -> None:
    """Whatever the headers are; with a token there is one more."""
    request = signed(url, data=data, headers=HEADERS | headers, keys=keys, service=service)
    assert signature_of(request, keys, service) == request.headers["Authorization"]
    assert request.headers["X-Amz-Security-Token"] == keys.token


@pytest.mark.parametrize(
    "of",
    [
        {"url": "https://proxy/kinesis/?stage=a b"},
        {"url": "https://proxy/a%20path/../b"},
        {"method": "GET", "data": None},
        pytest.param({"data": io.BytesIO(b"many records")}, id="data of a file"),
        {"data": "text"},
    ],
    ids=str,
)
def test_request_of_another_form_is_signed_by_botocore(of: dict[str, Any]) -> None:
    """A path, a query, another method, or a body that is read from a file."""
    request = signed(**of)
    assert signature_of(request, KEYS, "kinesis") == request.headers["Authorization"]


def test_next_try_replaces_the_signature() -> None:
    """Each header is sent once."""
    request = signed(keys=TEMPORARY)
    request.headers["X-Amz-Date"] = "20260101T000000Z"
    PostSigner(KEYS, "kinesis", "eu-west-1").add_auth(request)
    assert signature_of(request, KEYS, "kinesis") == request.headers["Authorization"]
    for name in ("Authorization", "X-Amz-Date"):
        assert len(request.headers.get_all(name)) == 1
    assert "X-Amz-Security-Token" not in request.headers


def test_nothing_is_signed_without_credentials() -> None:
    """As by botocore."""
    with pytest.raises(NoCredentialsError):
        signed(keys=None)
