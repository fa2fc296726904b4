"""The stages of `.ci/nightly`: tests that take long and depend on a part of the files that can be named.

`.ci/run` runs a stage itself where one of its files has changed since the last result in `.ci/results.json`. A stage
covers its tests with all that they import, start and open (`support.ci.covered`), and the files of `also`, which no
source of them names.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final


@dataclass(frozen=True)
class Stage:
    """Tests by the patterns of their files, in which `*` goes through folders and `!` takes files out again.

    *commands* of run.py run before the tests, *nightly* in `.ci/nightly` alone. *also* are patterns of files that the
    sources of the tests do not name. A stage *apart* has a run of pytest of its own, with *processes*; the tests of the
    others run among those that belong to no stage.
    """

    name: str
    tests: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    nightly: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    is_apart: bool = False
    processes: int = 4


# Acceptance tests of what pages say.
OF_PAGES: Final = (
    "tests/acceptance/test_aws_access.py",
    "tests/acceptance/test_cut_over.py",
    "tests/acceptance/test_importing.py",
    "tests/acceptance/test_interface.py",
    "tests/acceptance/test_page.py",
    "tests/acceptance/test_recovery_commands.py",
    "tests/acceptance/test_reference_examples.py",
    "tests/acceptance/test_runbook.py",
    "tests/acceptance/test_start_page.py",
    "tests/acceptance/test_throughput.py",
)
OF_VERSIONS: Final = ("tests/acceptance/test_postgres_versions.py",)
OF_INSTALLING: Final = (
    "tests/acceptance/test_newcomer.py",
    "tests/tools/test_audit.py",
    "tests/tools/test_installing.py",
    "tests/tools/test_packages.py",
    "tests/tools/test_requirements_index.py",
)
STAGES: Final = (
    Stage(
        "peers",
        ("tests/peers/test_*.py",),
        commands=("peers",),
        also=("tests/peers/*",),
        is_apart=True,
    ),
    Stage("models", ("tests/model/test_*.py",), is_apart=True, processes=2),
    # Of which a smaller one is a test of the stage above.
    Stage("large-models", nightly=("test -n 2 -m nightly tests/model",), also=("tests/model/*",), is_apart=True),
    Stage(
        "fuzz",
        commands=("fuzz --seconds 60",),
        nightly=("fuzz --seconds 1200 --seed 2",),
        also=("tests/fuzz/*",),
        is_apart=True,
    ),
    Stage("simulation", ("tests/simulation/test_*.py",), also=("tests/simulation/*",)),
    # Beside those that the stage above notices.
    Stage(
        "wrong-designs", nightly=("test -n 2 -m nightly tests/simulation",), also=("tests/simulation/*",), is_apart=True
    ),
    Stage("local", ("tests/integration/local/test_*.py",)),
    Stage("queues", ("tests/integration/sqs/test_*.py",)),
    Stage("stream", ("tests/integration/kinesis/test_*.py",)),
    # Those of Postgres, and what is left of the worker.
    Stage(
        "shards",
        (
            "tests/integration/*/test_*.py",
            *(f"!tests/integration/{folder}/*" for folder in ("local", "sqs", "kinesis")),
        ),
    ),
    Stage(
        "site",
        ("tests/tools/test_site.py",),
        nightly=("site --pictures",),
        # The pages, and the files of the repository that they link to.
        also=("*.md", "Dockerfile", "deploy/*", "simplu_worker/shards/sql/*"),
    ),
    Stage("installs", OF_INSTALLING, also=("deploy/systemd/*", ".gitignore", ".dockerignore", "LICENSE")),
    Stage("pages", OF_PAGES),
    # On Postgres 15, with a part of the tests in tests/integration.
    Stage("versions", OF_VERSIONS),
    Stage(
        "programs",
        (
            "tests/acceptance/test_*.py",
            "tests/field/test_*.py",
            *(f"!{path}" for path in (*OF_PAGES, *OF_INSTALLING, *OF_VERSIONS)),
        ),
    ),
)


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Return whether *path* is of one of the *patterns*, and of none with a `!`."""
    is_out = any(fnmatchcase(path, pattern[1:]) for pattern in patterns if pattern[0] == "!")
    return not is_out and any(fnmatchcase(path, pattern) for pattern in patterns)
