"""docs/installing.md is true: its commands are run in a copy of the repository, and the steps of the Dockerfile."""

from __future__ import annotations

import json
import re
import shlex
import time
import tomllib
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from support.checkout import checkout_files, copy_files, newcomer_environment, run_lines
from support.image_build import ImageBuild, context_of, missing_sources, parse_dockerfile
from support.imported_modules import IMPORT_ALL, NEEDS
from support.network.tls_front import make_certificate
from support.page_examples import page_examples
from support.requires import ROOT

from simplu_local.processes.loopback import free_port
from simplu_worker import __version__

PAGE = ROOT / "docs" / "installing.md"
DOCKERFILE = ROOT / "Dockerfile"
DOCKERIGNORE = ROOT / ".dockerignore"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLACE = "/opt/simplu-worker"  # where the page installs the wheel
WRONG_CONFIGURATION = 78
PAYLOAD_MAX_BYTES = 136_000_000  # 15 MB of it are the library that judges by JSON Schemas
PATIENCE_S = 60.0


@pytest.mark.nightly
def test_commands_of_the_page_install_the_worker_and_remove_it(tmp_path: Path) -> None:
    checkout = copy_files(checkout_files(), tmp_path / "checkout")
    place = tmp_path / "place"
    environment = newcomer_environment(tmp_path / "bin")
    examples = page_examples(PAGE)
    output, problems = "", ""
    for what, _, text in examples:
        lines = text.replace(PLACE, str(place))
        match what:
            case "run":
                output += run_lines(lines, folder=checkout, environment=environment).stdout
            case "refused":
                done = run_lines(lines, folder=checkout, environment=environment, status=WRONG_CONFIGURATION)
                problems = done.stderr
            case "problems":
                assert problems == text
            case "systemd":
                pass  # tests/tools/test_systemd.py runs these
            case _:
                raise AssertionError(f"expected a known kind of example, got {what}")
    assert {example.what for example in examples} == {"run", "refused", "problems", "systemd"}
    assert output.splitlines().count(__version__) == 2
    assert "Usage: simplu-worker COMMAND" in output
    assert not place.exists()
    assert not (checkout / ".venv").exists()


@pytest.mark.nightly
def test_steps_of_the_dockerfile_make_an_image_of_the_worker(tmp_path: Path) -> None:
    context = context_of(checkout_files(), DOCKERIGNORE.read_text(encoding="utf-8"))
    environment = newcomer_environment(tmp_path / "bin")
    run_lines("uv venv -q --seed --python python3 base", folder=tmp_path, environment=environment)
    base = environment | {"PATH": f"{tmp_path / 'base' / 'bin'}:{environment['PATH']}"}
    (tmp_path / "image").mkdir()
    image = ImageBuild(copy_files(context, tmp_path / "context"), tmp_path / "image", base)
    image.follow(parse_dockerfile(DOCKERFILE.read_text(encoding="utf-8")))
    version, _ = image.run(shlex.join([*image.entrypoint, "--version"]))
    _, problems = image.run(shlex.join([*image.entrypoint, *image.command]), status=WRONG_CONFIGURATION)
    refused, _ = image.run(f"python -I -c {shlex.quote(IMPORT_ALL)}")
    assert version.strip() == __version__
    assert "KINESIS_STREAM_NAME: expected a source" in problems
    assert json.loads(refused) == []
    assert [path for name in ("pip", "simplu_local", "moto") for path in (image.root / "opt").rglob(name)] == []
    before = files_of(image.root)
    certificate, key = make_certificate(tmp_path)
    check_health(image, {})
    check_health(image, {"HTTP_TLS_CERT_FILE": str(certificate), "HTTP_TLS_KEY_FILE": str(key)})
    assert files_of(image.root) == before  # its root file system may be read-only
    check_bill_of_materials(image)
    image.run("python -m compileall -q -j 2 /opt/simplu-worker/lib")  # as pip does in a build
    assert image.size_bytes() <= PAYLOAD_MAX_BYTES


def files_of(root: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of each file below *root*, and of each folder, whose time is that of its last new file."""
    found = {str(path.relative_to(root)): path.lstat() for path in root.rglob("*")}
    return {name: (one.st_size, one.st_mtime_ns) for name, one in found.items()}


def check_health(image: ImageBuild, tls: Mapping[str, str]) -> None:
    """Check that HEALTHCHECK fails before the worker is there and after it has ended, and not while it runs."""
    settings = {
        **tls,
        "HTTP_PORT": str(free_port()),
        "AWS_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "SQS_ORDER_EVENTS_QUEUE_URL": "http://127.0.0.1:1/000000000000/orders",
        "SQS_DEAD_LETTER_QUEUE_URL": "http://127.0.0.1:1/000000000000/letters",
        "DATABASE_HOST": "127.0.0.1",
        "DATABASE_NAME": "none",
        "DATABASE_USERNAME": "none",
    }

    def is_healthy() -> bool:
        return image.start(image.health_check, settings).wait(PATIENCE_S) == 0

    assert not is_healthy()
    worker = image.start([*image.entrypoint, *image.command], settings)
    try:
        until = time.monotonic() + PATIENCE_S
        while not (is_up := is_healthy()) and time.monotonic() < until:
            assert worker.poll() is None
        assert is_up
    finally:
        worker.kill()
        worker.wait()
    assert not is_healthy()


def check_bill_of_materials(image: ImageBuild) -> None:
    """Check that the bill has all that is installed, and what the worker depends on; cyclonedx-py has validated it."""
    bill = json.loads((image.root / "opt" / "simplu-worker" / "sbom.cdx.json").read_text(encoding="utf-8"))
    listed = {f"{one['name']}-{one['version']}": one for one in bill["components"]}
    folders = [str(path) for path in (image.root / "opt").rglob("site-packages")]
    installed = {f"{one.name}-{one.version}" for one in distributions(path=folders)}
    assert listed.keys() == installed
    assert {key for one in listed.values() for key in one} >= {"purl", "licenses"}
    (needed,) = [one["dependsOn"] for one in bill["dependencies"] if one["ref"] == f"simplu-worker=={__version__}"]
    assert {one.partition("==")[0] for one in needed} >= {"asyncpg", "redis", "opentelemetry-sdk"}


def test_page_names_the_pythons_and_the_extras_of_the_project() -> None:
    page = PAGE.read_text(encoding="utf-8")
    named = re.search(r"Python ([\d., or]+) with", page)
    assert named is not None
    classified = re.findall(r"Python :: (\d\.\d+)", " ".join(PROJECT["classifiers"]))
    assert re.findall(r"\d\.\d+", named[1]) == classified
    extras = page.partition("| extra | for |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", extras, flags=re.MULTILINE) == list(PROJECT["optional-dependencies"])
    assert {*NEEDS, "local"} == PROJECT["optional-dependencies"].keys()


@pytest.mark.slow
def test_sources_of_the_dockerfile_are_in_the_context() -> None:
    instructions = parse_dockerfile(DOCKERFILE.read_text(encoding="utf-8"))
    ignored = DOCKERIGNORE.read_text(encoding="utf-8")
    assert missing_sources(instructions, context_of(checkout_files(), ignored)) == []
    assert missing_sources(instructions, context_of(checkout_files(), ignored.replace("!LICENSE\n", ""))) == ["LICENSE"]
    context = context_of(checkout_files(), ignored)
    assert {path.partition("/")[0] for path in context} == {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "requirements",
        "simplu_worker",
    }
