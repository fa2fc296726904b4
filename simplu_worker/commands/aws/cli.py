"""The command line of `aws`."""

from __future__ import annotations

from cyclopts import App

from simplu_worker.commands.command_line import NO_OPTIONS, CommonOptions

aws = App(name="aws")


@aws.command(name="plan")
def plan_resources(*, common: CommonOptions = NO_OPTIONS) -> int:
    """Print the missing streams, tables and queues, as commands of the AWS CLI. Changes nothing."""
    from simplu_worker.commands.aws.plan import print_plan

    return common.run(lambda settings: print_plan(settings, as_json=common.as_json))
