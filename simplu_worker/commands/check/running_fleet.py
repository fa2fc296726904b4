"""What the worker that runs on this machine says of itself and its fleet, for `check`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from simplu_worker.commands.check.dependency import CheckAnswer, CheckedDependency, CheckStatus, check_dependency
from simplu_worker.commands.fleet.replica_client import open_replica
from simplu_worker.config.settings import Settings
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.network_errors import NO_SERVER
from simplu_worker.status.own_server import own_url
from simplu_worker.vocabulary import Severity

PROBLEMS_NAMED: Final = 5
LASTS: Final = timedelta(minutes=1)  # what is critical for so long does not pass by itself


async def check_fleet(settings: Settings) -> list[CheckedDependency]:
    """Ask the worker of this machine for what is wrong now. Without a worker, or a token for it, nothing is known."""

    async def ask() -> CheckAnswer:
        try:
            async with open_replica(settings, None) as replica:
                fleet = await replica.ask("GET", "/fleet")
        except RetryableError as exc:
            if NO_SERVER in str(exc):
                return CheckAnswer("no worker runs on this machine", CheckStatus.OFF)
            return CheckAnswer(str(exc), CheckStatus.WARNING)
        except WorkerError as exc:
            return CheckAnswer(f"not asked: {exc}", CheckStatus.OFF)
        if "problems" not in fleet:
            return CheckAnswer("another program answers there", CheckStatus.OFF)
        return describe_problems(fleet["problems"], datetime.fromisoformat(fleet["at"]))

    address = own_url(settings.http_host, settings.http_port, is_https=settings.http_tls_cert_file is not None)
    return [await check_dependency("running fleet", address, ask)]


def describe_problems(problems: Iterable[Mapping[str, Any]], now: datetime) -> CheckAnswer:
    """Return as its answer the problems of `/fleet` that are not over *now*, the worst first."""
    found = [one for one in problems if not one["isOver"]]
    if not found:
        return CheckAnswer("nothing is wrong")
    named = [f"{one['problem']}{_about(one)}" for one in found[:PROBLEMS_NAMED]]
    more = f"; and {len(found) - PROBLEMS_NAMED} more" if len(found) > PROBLEMS_NAMED else ""
    fails = any(
        one["severity"] == Severity.CRITICAL and now - datetime.fromisoformat(one["since"]) > LASTS for one in found
    )
    text = f"{'; '.join(named)}{more}. {found[0]['advice']}"
    return CheckAnswer(text, CheckStatus.FAILED if fails else CheckStatus.WARNING)


def _about(problem: Mapping[str, Any]) -> str:
    about = [part for part in (problem["subject"], (problem.get("reason") or "").replace("_", " ")) if part]
    return f" ({', '.join(about)})" if about else ""
