"""What tests share: hypothesis's settings, a moto for a module, and real Postgres servers with a shard for every test.

One server a test process, started when the first test wants it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any
from weakref import WeakSet

import hypothesis
import pytest
from support import selection
from support.aws.endpoints import CREDENTIALS, empty_moto, running_moto
from support.leaks import LeakDetector
from support.postgres.databases import SHARD_ID, PoolMaker, ShardMaker, Shelf, copy_shard, make_template
from support.postgres.tenant_cases import TenantCase, add_tenant
from support.requires import require

from simplu_local.postgres.server import INITIAL_DATA_VARIABLE, PostgresPrograms, PostgresServer, find_postgres_bin
from simplu_local.processes.loopback import StackError
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.config.settings import VARIABLES
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.connector import ShardConnection
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts

# Examples may take as long as a server takes. Where every run has to come to the same result, so do the examples.
hypothesis.settings.register_profile("simplu", deadline=None, max_examples=50)
hypothesis.settings.register_profile(
    "simplu-repeatable", hypothesis.settings.get_profile("simplu"), derandomize=True, print_blob=True
)
_IS_REPEATABLE = bool(os.environ.get("CI") or os.environ.get("REQUIRE_ALL"))
hypothesis.settings.load_profile("simplu-repeatable" if _IS_REPEATABLE else "simplu")

# Fixtures of a module that have as much open after a test as before it.
UNCHANGED = ("_module_leaves_nothing", "endpoint_url")

# A file system in memory, on Linux. In containers it is small, or no program in it may run.
MEMORY = "/dev/shm"
MEMORY_LEAST_BYTES = 4 * 1024**3

_tenant_numbers = itertools.count(1)
_leaks = LeakDetector()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `.ci/run` says."""
    selection.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Begin to watch for leaks, choose the tests to run, and have initdb run once for all servers.

    Settings that tests make read the environment: the variables of whoever runs the tests are none of theirs.
    """
    for name in VARIABLES.keys() - {"LOG_LEVEL"}:
        os.environ.pop(name, None)
    _use_memory()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # programs are started by the hundred
    if INITIAL_DATA_VARIABLE not in os.environ:  # the processes of xdist inherit it
        folder = tempfile.mkdtemp(prefix="simplu-data-")
        os.environ[INITIAL_DATA_VARIABLE] = folder
        config.add_cleanup(partial(_forget_initial_data, folder))
    _leaks.install(config)
    config.pluginmanager.register(selection.Selection(config))


def _use_memory() -> None:
    """Have this process and those it starts make temporary files in memory, unless TMPDIR names another folder.

    Tests start Postgres servers whose files nobody keeps: on a disk these cost several times the processor time.
    """
    if "TMPDIR" not in os.environ and _is_roomy(MEMORY):
        os.environ["TMPDIR"] = tempfile.tempdir = MEMORY


def _is_roomy(folder: str) -> bool:
    try:
        facts = os.statvfs(folder)
    except OSError:
        return False
    is_big = facts.f_bavail * facts.f_frsize >= MEMORY_LEAST_BYTES
    return is_big and not facts.f_flag & os.ST_NOEXEC and os.access(folder, os.W_OK | os.X_OK)


def _forget_initial_data(folder: str) -> None:
    del os.environ[INITIAL_DATA_VARIABLE]
    shutil.rmtree(folder)


@pytest.fixture(autouse=True, scope="module")
def _module_leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    with _leaks.nothing_left(request.node.nodeid):
        yield


@pytest.fixture(autouse=True)
def _test_leaves_nothing(request: pytest.FixtureRequest, _module_leaves_nothing: None) -> Iterator[None]:
    if _shares_with_its_module(request):
        yield
    else:
        with _leaks.nothing_left(request.node.nodeid):
            yield


def _shares_with_its_module(request: pytest.FixtureRequest) -> bool:
    """Return whether the test uses an event loop or a fixture that other tests of its module use as well."""
    marker = request.node.get_closest_marker("asyncio")
    if marker is not None and marker.kwargs.get("loop_scope", "function") != "function":
        return True
    fixtures: dict[str, Any] = request.node._fixtureinfo.name2fixturedefs
    scopes = {name: definitions[-1].scope for name, definitions in fixtures.items()}
    return any(scope in ("class", "module", "package") for name, scope in scopes.items() if name not in UNCHANGED)


def _running_server(name: str) -> Iterator[PostgresServer]:
    try:
        find_postgres_bin()
    except StackError as exc:
        require("a Postgres server", found=False, how=str(exc))
    with ProcessGroup() as group:
        server = PostgresServer(group, PostgresPrograms.find(group.directory), database=name)
        asyncio.run(server.start())
        asyncio.run(make_template(server))
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Give the Postgres server of this test process; a test leaves it running and its settings as they were."""
    yield from _running_server("tests")


@pytest.fixture(scope="session")
def _breakable_server() -> Iterator[PostgresServer]:
    yield from _running_server("breakable")


@pytest.fixture
async def breakable_server(_breakable_server: PostgresServer) -> AsyncIterator[PostgresServer]:
    """Give another server, which a test may kill, stop or suspend; the next one finds it running again."""
    yield _breakable_server
    _breakable_server.resume()
    await _breakable_server.start()


@pytest.fixture(scope="session")
def _shelf(postgres_server: PostgresServer) -> Shelf:
    return Shelf(postgres_server)


@pytest.fixture(scope="session")
def _shard_connections() -> Iterator[WeakSet[ShardConnection]]:
    made: WeakSet[ShardConnection] = WeakSet()
    init = ShardConnection.__init__

    def noted(self: ShardConnection, *arguments: Any) -> None:
        init(self, *arguments)
        made.add(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardConnection, "__init__", noted)
        yield made


@pytest.fixture
async def make_shard(_shelf: Shelf, _shard_connections: WeakSet[ShardConnection]) -> AsyncIterator[ShardMaker]:
    """Give what makes shards of one's own, called with a shard id and, for a database with nothing in it, is_empty."""
    made: list[tuple[ShardAddress, bool]] = []

    async def make(shard_id: str = SHARD_ID, *, is_empty: bool = False) -> ShardAddress:
        address = await _shelf.take(shard_id, is_empty=is_empty)
        made.append((address, is_empty))
        return address

    yield make
    left_open = [connection for connection in _shard_connections if not connection.is_closed()]
    for address, is_empty in made:
        await _shelf.give_back(address, is_empty=is_empty)
    # The collector would find them some time later, in another test, which would fail by their warning.
    assert not left_open, f"expected all pools to be closed, got {len(left_open)} open connections: close them"


@pytest.fixture
async def make_pool(make_shard: ShardMaker) -> AsyncIterator[PoolMaker]:
    """Give what makes pools, of an address or else of a fresh shard, called with a size and with timeouts by name."""
    made: list[ShardPool] = []

    async def make(address: ShardAddress | None = None, *, size: int = 4, **timeouts: float) -> ShardPool:
        made.append(ShardPool(address or await make_shard(), size=size, timeouts=ShardTimeouts(**timeouts)))
        return made[-1]

    yield make
    for pool in made:
        await pool.close()


@pytest.fixture
async def shard(make_pool: PoolMaker) -> ShardPool:
    """Give the pool of a fresh shard with our schema and no tenant."""
    return await make_pool()


@pytest.fixture(scope="session")
def common_address(postgres_server: PostgresServer) -> ShardAddress:
    """Give the address of one shard for all tests that touch nothing but tenants of their own."""
    return asyncio.run(copy_shard(postgres_server))


@pytest.fixture
async def tenant(common_address: ShardAddress, make_pool: PoolMaker) -> TenantCase:
    """Give a fresh, active tenant on the common shard."""
    case = TenantCase(await make_pool(common_address), (f"clinic-{next(_tenant_numbers)}", "main"))
    await add_tenant(case.pool, case.ids)
    return case


@pytest.fixture(scope="session")
def _moto() -> Iterator[str]:
    with running_moto() as url:
        yield url


@pytest.fixture(scope="module")
def endpoint_url(_moto: str) -> str:
    """Give a moto that is empty at first to the tests of a module; each makes its own queue, stream or table."""
    empty_moto(_moto)
    return _moto


@pytest.fixture
def aws_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put keys that moto takes into the environment, where the AWS chain finds them."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
