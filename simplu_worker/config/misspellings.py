"""Find misspelt variables in an environment that other programs share: those that resemble a variable of ours. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from simplu_worker.config.settings import SECRETS, VARIABLES

SIMILARITY_MIN: Final = 0.82  # finds LOG_LVL and DATABASE_USER, and leaves DATABASE_URL and HTTP_PROXY alone
AWS_VARIABLES: Final = (
    "AWS_CONFIG_FILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_DYNAMODB",
    "AWS_ENDPOINT_URL_KINESIS",
    "AWS_ENDPOINT_URL_SQS",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
)
KNOWN_VARIABLES: Final = frozenset({*AWS_VARIABLES, *VARIABLES, *(f"{name}_FILE" for name in SECRETS)})
# AWS_ENDPOINT_URL_SNS and others of three letters are variables of other programs.
_CANDIDATES: Final = sorted(KNOWN_VARIABLES - {"AWS_ENDPOINT_URL_SQS"})


def find_misspellings(names: Iterable[str]) -> dict[str, str]:
    """Return, for each of *names* that is no variable of ours but resembles one, the one that it resembles most."""
    nearest = {name: get_close_matches(name.upper(), _CANDIDATES, 1, SIMILARITY_MIN) for name in names}
    return {
        name: found[0]
        for name, found in nearest.items()
        # REDIS_URL_2 and DATABASE_PORT_5432_TCP, as Kubernetes sets it, have a name of ours and more.
        if found and name not in KNOWN_VARIABLES and not name.startswith(f"{found[0]}_")
    }
