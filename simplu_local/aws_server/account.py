"""The region and the account to which every resource of the local AWS belongs. Pure."""

from __future__ import annotations

REGION, ACCOUNT_ID = "us-east-1", "123456789012"
