"""The clients for producers, as they are packed: beside faults and a kill of the worker each key is in its order."""

from __future__ import annotations

import json
import re
import secrets
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clients.cases import CASES, make_script, read_cases
from support.clients.packages import (
    CLIENTS,
    build_tarball,
    build_wheel,
    compile_program,
    installed_typescript,
    require_node,
    run_node,
    typescript_copy,
)
from support.clients.trial import Language, Program, producer, run_program, run_trial
from support.page_examples import page_examples
from support.peers.shared_stream import TENANT, SharedStream

from simplu_local.processes.worker_process import WorkerProcess

OPERATIONS, KEYS = 4000, 100
SCRIPTS = 300
WAIT_S = 120.0
LANGUAGES = ["python", "typescript"]


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> Language:
    found: Language = request.param
    if found == "typescript":
        require_node()
    return found


@pytest.mark.peers(30)
@pytest.mark.asyncio(loop_scope="module")
async def test_operations_of_a_client_are_applied_once_and_in_order(
    shared: SharedStream, tmp_path: Path, language: Language
) -> None:
    with producer(language) as program:
        figures = await run_trial(shared, program, tmp_path, operations=OPERATIONS, keys=KEYS)
    assert figures.violations == 0, figures
    assert figures.operations_sent_again > 0
    assert figures.operations_twice_in_the_stream > 0


@pytest.fixture
def messages_program(language: Language) -> Iterator[Program]:
    with producer(language, "client_messages") as program:
        yield program


@pytest.mark.peers(15)
@pytest.mark.asyncio(loop_scope="module")
async def test_messages_of_a_client_are_applied_with_typed_outcomes(
    shared: SharedStream, tmp_path: Path, messages_program: Program
) -> None:
    env = shared.stack.env
    await shared.create(1)
    async with shared.stack.aws_client("sqs") as sqs:
        standard = await sqs.create_queue(QueueName=f"urgent-{secrets.token_hex(3)}")
    queues = {
        "controlQueueUrl": env["SQS_SHARD_CREATION_QUEUE_URL"],
        "orderQueueUrl": env["SQS_ORDER_EVENTS_QUEUE_URL"],
        "priorityQueueUrl": standard["QueueUrl"],
    }
    own = {
        "SQS_SHARD_CREATION_QUEUE_URL": queues["controlQueueUrl"],
        "SQS_ORDER_EVENTS_QUEUE_URL": queues["orderQueueUrl"],
        "SQS_PRIORITY_QUEUE_URL": queues["priorityQueueUrl"],
    }
    worker: WorkerProcess
    with shared.replica(**own) as worker:
        await worker.wait_ready()
        tenant = {"businessId": f"client-{secrets.token_hex(3)}", "locationId": "main"}
        plan = {
            "stream": shared.stream,
            "url": worker.url,
            "token": env["API_TOKEN"],
            "tenant": tenant,
            "waitS": WAIT_S,
        }
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(plan | queues), encoding="utf-8")
        found = json.loads(await run_program(messages_program, shared, path, within_s=3 * WAIT_S))
    assert found == [
        ["event 0", None],
        ["event 1", None],
        ["event 2", None],
        ["read", {"state": "paid"}],
        ["patch", "OperationFailedError", "not_found"],
        ["invalid", "InvalidOperationError", None],
        ["wrong token", "UnexpectedAnswerError", None],
        ["no time", "WaitTimeoutError", None],
        ["given up", "NotSentError", None],
        ["given up", "NotSentError", None],
        ["left", 0],
        ["left", 2],
        ["closed", "ClosedError", None],
    ]


@pytest.mark.nightly
@pytest.mark.asyncio(loop_scope="module")
async def test_example_of_the_page_in_typescript_does_what_it_says(shared: SharedStream) -> None:
    require_node()
    (example,) = (one for one in page_examples(CLIENTS / "typescript" / "README.md") if one.name == "typescript")
    own = {"smile": TENANT.business_id, "berlin": TENANT.location_id, "resources-operations": shared.stream}
    text = re.sub("|".join(own), lambda found: own[found[0]], example.text)
    await shared.create(1)
    with installed_typescript() as folder, shared.replica() as worker:
        path = folder / "example.mts"
        path.write_text(text, encoding="utf-8")
        command = ("node", str(compile_program(path)))
        await worker.wait_ready()
        program = Program(command, {"HTTP_PORT": str(worker.port)})
        assert await run_program(program, shared, within_s=WAIT_S) == b"{ price: 49.9 }\n"


@pytest.mark.peers(8)
def test_client_in_typescript_does_what_that_in_python_does(tmp_path: Path) -> None:
    require_node()
    scripts = [{"name": f"seed {seed}", "steps": make_script(seed)} for seed in range(SCRIPTS)]
    path = tmp_path / "scripts.json"
    path.write_text(json.dumps(scripts), encoding="utf-8")
    count = SCRIPTS + sum(len(read_cases(name)) for name in ("batcher", "messages", "outcomes"))
    with typescript_copy() as copy:
        assert run_node(str(copy / "test" / "cases.mjs"), str(CASES), str(path)) == f"{count} cases\n"


@pytest.mark.peers(8)
def test_packages_have_their_client_alone(tmp_path: Path) -> None:
    require_node()
    with typescript_copy() as copy, tarfile.open(build_tarball(copy, tmp_path)) as archive:
        names = {name.removeprefix("package/") for name in archive.getnames()}
    modules = [path.stem for path in (CLIENTS / "typescript" / "src").iterdir()]
    assert names == {"package.json", "README.md"} | {
        f"dist/{name}{end}" for name in modules for end in (".js", ".d.ts")
    }
    with zipfile.ZipFile(build_wheel(tmp_path)) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = wheel.read("simplu_client-0.1.0.dist-info/METADATA").decode()
    folder = CLIENTS / "python"
    packages = ("simplu_client", "simplu_router")
    files = {path for name in packages for path in (folder / name).iterdir() if path.is_file()}
    assert names == {path.relative_to(folder).as_posix() for path in files}
    assert [line for line in metadata.splitlines() if line.startswith(("Requires-Dist", "Provides-Extra"))] == [
        "Requires-Dist: boto3>=1.35",
        "Provides-Extra: router",
        "Requires-Dist: asyncpg>=0.32; extra == 'router'",
    ]
