"""The pages of docs/runbook/ are true: each is carried out from its own text on the embedded stack.

That on the first deployment is carried out by test_newcomer.py, under a real systemd.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from acceptance.runbook_scenes import SCENES
from support.requires import ROOT
from support.runbook.page import lines_elsewhere, read_steps
from support.runbook.scene import Scene
from support.runbook.stand_ins import STAND_INS, carry_out
from support.runbook.world import World, open_world

from simplu_worker.commands.fleet.actions import NOTHING_IS_HELD

RUNBOOK = ROOT / "docs" / "runbook"
INDEX = RUNBOOK / "README.md"
FIRST = RUNBOOK / "first-deployment.md"
PAGES = sorted(path for path in RUNBOOK.glob("*.md") if path not in {INDEX, FIRST})
ASKS_FOR_HELD = "simplu-worker fleet show --env-file worker.env"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with open_world() as opened:
        yield opened


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.slow(3)
@pytest.mark.asyncio(loop_scope="module")
async def test_page_leads_where_it_says(world: World, page: Path) -> None:
    async with Scene(world, page.stem) as scene:
        await SCENES[page.stem](scene)
        for step in read_steps(page):
            await carry_out(scene, step)
        await scene.wait_until_applied()


@pytest.mark.slow(3)
@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_is_held_is_not_said_without_a_worker(world: World) -> None:
    texts = [step.text for page in PAGES for step in read_steps(page) if NOTHING_IS_HELD in step.expected]
    assert texts
    assert not [text for text in texts if ASKS_FOR_HELD not in text.splitlines()]
    async with Scene(world, "no-worker") as scene:
        scene.write("worker.env", "API_TOKEN=0123456789abcdef\n")
        status, output = await scene.run_lines(ASKS_FOR_HELD)
    assert (status != 0, "nothing listens" in output, NOTHING_IS_HELD in output) == (True, True, False)


def test_every_page_has_a_scene_and_is_in_the_index() -> None:
    assert sorted(SCENES) == [page.stem for page in PAGES]
    named = re.findall(r"\]\(([\w-]+)\.md\)", INDEX.read_text(encoding="utf-8"))
    assert sorted(named) == sorted([*SCENES, FIRST.stem])
    assert {line for page in PAGES for line in lines_elsewhere(read_steps(page))} == STAND_INS.keys()
