"""The wheel and the sdist: what is in them, and that they install and run on each Python that is present."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from support.checkout import checkout_files, newcomer_environment, run_lines
from support.imported_modules import IMPORT_ALL
from support.requires import ROOT

import simplu_local
from simplu_worker import __version__

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WHEEL_NAME = f"simplu_worker-{__version__}-py3-none-any.whl"
LOCAL_WHEEL_NAME = f"simplu_local-{__version__}-py3-none-any.whl"
# The Pythons of this machine with which the packages are tried.
NAME = re.compile(r"python3\.(\d+)")
OLDEST, NEWEST = 11, 14
# Where pyenv, uv and Debian have others beside the one that runs.
BESIDE = sorted(Path(sys.base_prefix).parent.glob("*/bin"))
ON_PATH = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep) if folder]
FOLDERS = (Path(sys.base_prefix, "bin"), *BESIDE, Path("/usr/local/bin"), Path("/usr/bin"), *ON_PATH)


@cache
def find_pythons() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in chain.from_iterable(sorted(folder.glob("python3.*")) for folder in FOLDERS):
        version = NAME.fullmatch(path.name)
        if version is not None and OLDEST <= int(version[1]) <= NEWEST and path.name not in found and runs(path):
            found[path.name] = str(path)
    return dict(sorted(found.items()))


def runs(path: Path) -> bool:
    return subprocess.run([path, "-c", "import ssl, venv"], capture_output=True, check=False).returncode == 0


class Packages(NamedTuple):
    """The built packages: the wheels from the checkout, the sdist, and the worker's wheel that is built from that."""

    wheel: Path
    local_wheel: Path
    sdist: Path
    wheel_of_sdist: Path


def build(source: Path, folder: Path, *targets: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    for target in targets:
        command += ["-t", target]
    subprocess.run(command, cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    folder, other = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("again")
    build(ROOT, folder, "wheel", "sdist")
    build(ROOT / "simplu_local", folder, "wheel")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(other, filter="data")
    build(other / sdist.name.removesuffix(".tar.gz"), other, "wheel")
    return Packages(folder / WHEEL_NAME, folder / LOCAL_WHEEL_NAME, sdist, other / WHEEL_NAME)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow(2)
def test_wheels_have_one_package_and_the_sdist_makes_the_same(packages: Packages) -> None:
    wheel = contents(packages.wheel)
    files = set(checkout_files())
    for name, found in (("simplu_worker", wheel), ("simplu_local", contents(packages.local_wheel))):
        wanted = {path for path in files - {"simplu_local/pyproject.toml"} if path.startswith(f"{name}/")}
        assert {path for path in found if ".dist-info/" not in path} == wanted
        assert f"{name}/py.typed" in wanted
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
    assert contents(packages.wheel_of_sdist) == wheel


@pytest.mark.slow(2)
def test_sdist_has_the_repository_and_no_secret_folder(packages: Packages) -> None:
    with tarfile.open(packages.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert names - {"PKG-INFO"} <= {*checkout_files()}
    assert {"tests/conftest.py", "docs/installing.md", "requirements/worker.txt", "run.py"} <= names


@pytest.mark.nightly
def test_packages_install_and_run_on_every_python_of_the_machine(
    packages: Packages, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The pins and the wheel, as the page has it; all dependencies fit each other; the command runs.

    None of the classifiers that is on this machine is left out; the summary of the run says which were tried.
    """
    environment = newcomer_environment(tmp_path / "bin")
    pins = shlex.quote(str(ROOT / "requirements" / "worker.txt"))
    pythons = find_pythons()
    named = {f"python{version}" for version in re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))}
    assert {name for name in named if (path := shutil.which(name)) and runs(Path(path))} <= pythons.keys()
    assert f"python{sys.version_info.major}.{sys.version_info.minor}" in pythons
    missing = f"; not on this machine: {', '.join(sorted(named - pythons.keys()))}" if named - pythons.keys() else ""
    record_property("note", f"Packages installed and run on {', '.join(pythons)}{missing}")
    for name, path in pythons.items():
        lines = f"""
            uv venv -q --python {shlex.quote(path)} {name}
            uv pip install -q --python {name}/bin/python --require-hashes --only-binary :all: -r {pins}
            uv pip install -q --python {name}/bin/python --no-deps '{packages.wheel_of_sdist}'
            uv pip check -q --python {name}/bin/python
            {name}/bin/python -I -c {shlex.quote(IMPORT_ALL)}
            {name}/bin/simplu-worker --version
        """
        done = run_lines(lines, folder=tmp_path, environment=environment)
        refused, version = done.stdout.splitlines()
        assert (json.loads(refused), version) == ([], __version__), name


def versions_in(page: str) -> set[str]:
    """Return the versions of the worker that a page names: of a wheel, an image, or for its build."""
    return set(re.findall(r"(?:simplu[-_]worker[-:]|\bVERSION=)(\d+\.\d+\.\d+)", page))


def test_version_is_the_same_everywhere() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", changelog, flags=re.MULTILINE)
    assert [*released, "1.0.0"][0] == __version__ == simplu_local.__version__
    assert PROJECT["optional-dependencies"]["local"] == [f"simplu-local=={__version__}"]
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = {page.name: versions_in(page.read_text(encoding="utf-8")) for page in pages if page.name != "releasing.md"}
    assert {name: versions for name, versions in named.items() if versions} == {
        "installing.md": {__version__},
        "aws.md": {__version__},
    }
    kustomization = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text(encoding="utf-8"))
    assert [image["newTag"] for image in kustomization["images"]] == [__version__]
