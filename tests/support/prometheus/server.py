"""A real Prometheus that scrapes workers and evaluates the rules of deploy/prometheus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from support.requires import ROOT, required_program

from simplu_local.processes.loopback import HOST, free_port, poll_until
from simplu_local.processes.watchdog import ProcessGroup

HOW = "apt-get install --no-install-recommends prometheus"
RULES = ROOT / "deploy" / "prometheus" / "alerts.yaml"
READY_S = 60.0
TIMEOUT = aiohttp.ClientTimeout(total=10)


class PrometheusServer:
    def __init__(self, group: ProcessGroup, targets: Sequence[str]) -> None:
        self._group = group
        self._targets = list(targets)
        self._folder = group.directory / "prometheus"
        self.url = f"http://{HOST}:{free_port()}"

    def __repr__(self) -> str:
        return f"PrometheusServer({self.url}, targets={self._targets})"

    async def start(self) -> None:
        self._folder.mkdir()
        config = self._folder / "prometheus.yml"
        # JSON is YAML, without its surprises.
        config.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(RULES)],
                    "scrape_configs": [{"job_name": "simplu-worker", "static_configs": [{"targets": self._targets}]}],
                }
            )
        )
        log_path = self._folder / "log"
        self._group.spawn(
            [
                required_program("prometheus", how=HOW),
                f"--config.file={config}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--log.level=warn",
            ],
            log_path=log_path,
        )
        if not await poll_until(self._is_ready, within_s=READY_S):
            raise TimeoutError(f"Prometheus is not ready after {READY_S:g} s:\n{_text_of(log_path)}")

    async def read(self, path: str, **parameters: str) -> Any:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as session,
            session.get(f"{self.url}/api/v1/{path}", params=parameters) as response,
        ):
            answer = await response.json()
        if answer["status"] != "success":
            raise ValueError(f"{path} {parameters}: {answer.get('error')}")
        return answer["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        data = await self.read("query", query=expression)
        found: list[dict[str, Any]] = data["result"]
        return found

    async def value(self, expression: str) -> float | None:
        found = await self.query(expression)
        return float(found[0]["value"][1]) if found else None

    async def _is_ready(self) -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=TIMEOUT) as session,
                session.get(f"{self.url}/-/ready") as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
