"""The command line of `check`."""

from __future__ import annotations

from simplu_worker.commands.command_line import NO_OPTIONS, CommonOptions


def check(*, common: CommonOptions = NO_OPTIONS) -> int:
    """Ask every dependency once, and print its answer and what is odd about the configuration."""
    from simplu_worker.commands.check.checking import check
    from simplu_worker.commands.running import run_command

    return run_command(check, common.env_file, as_json=common.as_json, for_run=True)
