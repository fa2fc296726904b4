"""The region of a profile, by botocore, which reads its files as every AWS client does."""

from __future__ import annotations

import botocore.session
from botocore.exceptions import BotoCoreError, ProfileNotFound


def names_region(profile: str | None) -> bool:
    """Return whether *profile*, by default that of the name `default`, names a region; False without a default one.

    True for a profile that cannot be read or is missing: opening a client names that problem.
    """
    try:
        return "region" in botocore.session.Session(profile=profile or "default").get_scoped_config()
    except ProfileNotFound:
        return profile is not None
    except BotoCoreError:  # a file that is not in the format of profiles
        return True
