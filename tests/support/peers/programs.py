"""The programs of other vendors' libraries that the tests in `tests/peers` run, and whether they are built."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from support.requires import ROOT, require

SOURCES = ROOT / "tests" / "peers"
BUILT = ROOT / ".tools" / "peers"
NODE_MODULES = ROOT / ".tools" / "node_modules"
HOW = "install Java 17, Maven and Go 1.26; python3 run.py peers"
STAMP = "digest"
# One JVM beside others on two processors: no compiler threads that outlast a test's few seconds.
JVM_OPTIONS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.showDateTime=true")


class JavaProgram(NamedTuple):
    """A program of Java. *folder* has its pom, with the versions of its libraries, and *sources* are all its code."""

    name: str
    folder: Path
    sources: tuple[Path, ...]

    @property
    def built(self) -> Path:
        return BUILT / self.folder.name

    @property
    def pom(self) -> Path:
        return self.folder / "pom.xml"

    @property
    def pins(self) -> Path:
        return self.folder / "jars.sha256"

    @property
    def digest(self) -> str:
        return _digest(self.pom, self.pins, *self.sources)

    @property
    def version(self) -> str:
        found = re.search(r"<dependency>.*?<version>(.*?)</version>", self.pom.read_text(encoding="utf-8"), re.DOTALL)
        return found[1] if found else "?"

    def command(self, jvm_options: Sequence[str] = JVM_OPTIONS) -> list[str]:
        """Return the beginning of its command line; skip or fail the running test as `require` does."""
        java = shutil.which("java")
        require(f"{self.name} {self.version}", found=java is not None and is_built(self), how=HOW)
        class_path = f"{self.built / 'classes'}:{self.built / 'lib'}/*"
        return [java or "", *jvm_options, "-cp", class_path, self.sources[0].stem]


class GoProgram(NamedTuple):
    """A program of Go: *folder* has its module and all its code, or *package* is the one of a library that it is."""

    name: str
    folder: Path
    library: str
    package: str = "."

    @property
    def built(self) -> Path:
        return BUILT / self.folder.name

    @property
    def digest(self) -> str:
        return _digest(*sorted(self.folder.iterdir()))

    @property
    def version(self) -> str:
        found = re.search(rf"{re.escape(self.library)} v(\S+)", (self.folder / "go.mod").read_text(encoding="utf-8"))
        return found[1] if found else "?"

    def command(self) -> list[str]:
        """Return the beginning of its command line; skip or fail the running test as `require` does."""
        require(f"{self.name} {self.version}", found=is_built(self), how=HOW)
        return [str(self.built / "program")]


class GoFiles(NamedTuple):
    """Files of modules of Go, for which nothing is compiled: *paths* are their patterns, by module.

    The pins have the form of a go.sum: module, version and hash of each.
    """

    name: str
    folder: Path
    paths: tuple[tuple[str, str], ...]

    @property
    def built(self) -> Path:
        return BUILT / self.folder.name

    @property
    def pins(self) -> Path:
        return self.folder / "modules.sum"

    @property
    def modules(self) -> list[GoModule]:
        return [GoModule(*line.split()) for line in self.pins.read_text(encoding="utf-8").splitlines()]

    @property
    def digest(self) -> str:
        return _digest(self.pins, content=repr(self.paths))

    @property
    def version(self) -> str:
        return ", ".join(module.version for module in self.modules)

    def files(self) -> Path:
        """Return the folder of the files; skip or fail the running test as `require` does."""
        require(self.name, found=is_built(self), how=HOW)
        return self.built


class GoModule(NamedTuple):
    """A module of Go, and the hash of all its files."""

    path: str
    version: str
    hash: str


class NodeProgram(NamedTuple):
    """A program of node, whose libraries `requirements/npm` has."""

    name: str
    source: Path
    library: str

    @property
    def version(self) -> str:
        package = json.loads((ROOT / "requirements" / "npm" / "package.json").read_text(encoding="utf-8"))
        return str(package["devDependencies"][self.library])

    def command(self) -> list[str]:
        """Return the beginning of its command line; skip or fail the running test as `require` does."""
        node = shutil.which("node")
        how = "install node, copy requirements/npm to .tools, and npm ci --prefix .tools"
        require(
            f"{self.name} {self.version}", found=node is not None and (NODE_MODULES / self.library).is_dir(), how=how
        )
        return [node or "", str(self.source)]


BuiltProgram: TypeAlias = JavaProgram | GoProgram | GoFiles


def is_built(program: BuiltProgram) -> bool:
    stamp = program.built / STAMP
    return stamp.exists() and stamp.read_text(encoding="utf-8") == program.digest


def _digest(*paths: Path, content: str = "") -> str:
    parts = [path.read_bytes() for path in paths if path.exists()]
    parts += [content.encode()] if content else []
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _consumer(folder: str) -> JavaProgram:
    java = SOURCES / "java"
    sources = (java / "consumer" / "Consumer.java", java / folder / "Settings.java")
    return JavaProgram("the Kinesis Client Library", java / folder, sources)


def _producer(name: str, folder: str) -> JavaProgram:
    java = SOURCES / "java" / folder
    return JavaProgram(name, java, (java / "Producer.java",))


KCL_2 = _consumer("kcl2")
KCL_3 = _consumer("kcl3")
KPL = _producer("the Kinesis Producer Library", "kpl")
JAVA_SDK = _producer("the AWS SDK for Java", "sdk")
GO_SDK = GoProgram("the AWS SDK for Go", SOURCES / "go", "github.com/aws/aws-sdk-go-v2/service/kinesis")
# Consumers that write to Postgres: contenders of benchmarks/throughput.
JDBC_CONSUMER = JavaProgram(
    "the Kinesis Client Library with JDBC",
    SOURCES / "java" / "jdbc",
    (SOURCES / "java" / "jdbc" / "JdbcConsumer.java",),
)
PGX_CONSUMER = GoProgram("the AWS SDK for Go with pgx", SOURCES / "pgx", "github.com/aws/aws-sdk-go-v2/service/kinesis")
JAVASCRIPT_SDK = NodeProgram("the AWS SDK for JavaScript", SOURCES / "producer.cjs", "@aws-sdk/client-kinesis")
JAVA_PROGRAMS = (KCL_2, KCL_3, KPL, JAVA_SDK, JDBC_CONSUMER)
HELM = GoProgram("Helm", SOURCES / "helm", "helm.sh/helm/v3", "helm.sh/helm/v3/cmd/helm")
# Its libraries have the versions of Helm's: they are compiled once for both.
KUSTOMIZE = GoProgram(
    "kustomize", SOURCES / "kustomize", "sigs.k8s.io/kustomize/kustomize/v5", "sigs.k8s.io/kustomize/kustomize/v5"
)
GO_PROGRAMS = (GO_SDK, PGX_CONSUMER, HELM, KUSTOMIZE)
CUSTOM_RESOURCES = GoFiles(
    "the schemas of custom resources",
    SOURCES / "schemas",
    (
        ("github.com/kedacore/keda/v2", "config/crd/bases/keda.sh_scaledobjects.yaml"),
        (
            "github.com/prometheus-operator/prometheus-operator",
            "example/prometheus-operator-crd/monitoring.coreos.com_*monitors.yaml",
        ),
        ("github.com/external-secrets/external-secrets", "config/crds/bases/external-secrets.io_externalsecrets.yaml"),
    ),
)
