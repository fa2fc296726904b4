"""Make the passwords of IAM authentication for databases of RDS: signed requests that were never sent.

Signing takes no request. A password is valid for 15 minutes, for one user at one host and port. A connection that was
opened in time stays open.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, urlencode

from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest

from simplu_worker.aws.clients import NO_REGION, credential_source, default_region, translate_errors
from simplu_worker.errors import ConfigurationError

VALID_S: Final = 900  # the longest that RDS accepts
# In China `rds` comes before the region, but for older endpoints.
_REGION_OF_HOST: Final = re.compile(
    r"\.(?:rds\.(?P<china>[a-z0-9-]+)\.amazonaws\.com\.cn|(?P<region>[a-z0-9-]+)\.rds\.amazonaws\.com(?:\.cn)?)$"
)


def region_of_host(host: str) -> str | None:
    """Return the region in the name of an endpoint of RDS, None for another name."""
    found = _REGION_OF_HOST.search(host)
    return None if found is None else found["china"] or found["region"]


async def make_rds_password(host: str, port: int, user: str) -> str:
    """Return a password of *user* at an endpoint of RDS, which has to be named as RDS names it.

    Raises `RetryableError` without credentials, `ConfigurationError` without a region.
    """
    region = region_of_host(host) or default_region()
    if region is None:
        raise ConfigurationError(NO_REGION)
    with translate_errors():
        credentials = await credential_source().get_frozen_credentials()
    query = urlencode({"Action": "connect", "DBUser": user}, quote_via=quote)
    request = AWSRequest("GET", f"https://{host}:{port}/?{query}")
    SigV4QueryAuth(credentials, "rds-db", region, expires=VALID_S).add_auth(request)
    return str(request.url).removeprefix("https://")
