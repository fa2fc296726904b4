"""Settings from the variables that a test hands to a process or to a command."""

from __future__ import annotations

from collections.abc import Mapping

from simplu_worker.config.settings import VARIABLES, Settings


def settings_in(environ: Mapping[str, str]) -> Settings:
    """Return the settings that *environ* has; an empty variable is unset, and others than the worker's are ignored."""
    return Settings.model_validate({name: value for name, value in environ.items() if value and name in VARIABLES})
