"""The table of SQLSTATEs (shards/postgres/errors.py), held by a real server that answers a code of each class.

What a function raises comes over a line that makes it look like an error of the server's own, or as it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import asyncpg
import pytest
from support.citrus.cases import routed_shards
from support.postgres.databases import ShardMaker, execute
from support.postgres.plain_errors import PlainErrorsLine
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, writer_of

from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import ErrorMeaning, meaning_of
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.types import (
    PositionClaim,
    RefusedOnShardError,
    ResourceRename,
    ShardUnavailableError,
    StreamPosition,
)

pytestmark = pytest.mark.slow(4)

# Codes with a meaning of their own, one of each kind of meaning, and one of no class.
CODES: Final = sorted(
    {"01004", "08006", "22P02", "22P05", "23514", "25006", "26000", "40001", "40P01", "42501", "42P05", "53100"}
    | {"54000", "54001", "55P03", "57014", "57P01", "57P03", "P0001", "XX000", "XX001", "ZZ999"}
)
KNOWN_CODES: Final = [str(code) for one in vars(asyncpg).values() if (code := getattr(one, "sqlstate", None))]
# The same, and one of each class of appendix A.
ALL_CODES: Final = sorted({*{code[:2]: code for code in KNOWN_CODES}.values(), *CODES})
REFUSING: Final = """
CREATE TABLE refused (place text, code text);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE refusal text := (SELECT code FROM public.refused WHERE place = TG_ARGV[0]);
BEGIN
    IF refusal IS NOT NULL AND to_jsonb(NEW)::text ~ 'BAD|424144' THEN  -- in the log as hexadecimal digits
        RAISE 'a secret' USING ERRCODE = refusal;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON stream_positions FOR EACH ROW EXECUTE FUNCTION refuse('position');
CREATE TRIGGER refuse BEFORE INSERT ON log_rows FOR EACH ROW EXECUTE FUNCTION refuse('log');
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON resources FOR EACH ROW EXECUTE FUNCTION refuse('resources');
CREATE CONSTRAINT TRIGGER refuse_late AFTER INSERT OR UPDATE ON resources DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION refuse('commit')
"""
OTHER: Final = ("clinic", "other")
TIMEOUTS: Final = ShardTimeouts(row_lock_s=0.05, part_lock_s=0.03)
PLACES: Final = ("begin", "position", "log", "resources", "commit")
OF_OPERATIONS: Final = ("log", "resources", "commit")
PROBE: Final = b"SELECT pg_catalog.pg_current_xact_id"


class Fate(StrEnum):
    """What becomes of a batch with an operation at which the server answers a code."""

    OPERATION = "the operation is failing"
    TENANT = "the tenant waits"
    SHARD = "the shard is held"


FATES: Final[dict[tuple[str, ...], Fate]] = {
    ("applied", "unexpected", "hold", "applied"): Fate.OPERATION,
    ("applied", "locked", "locked", "applied"): Fate.TENANT,
}


def fate_by_table(code: str, place: str) -> Fate:
    """Return what the table has for an error of the server's own."""
    if place not in OF_OPERATIONS:
        return Fate.SHARD
    if code == "55P03":
        return Fate.TENANT
    if code == "57014":  # before the timeout: by another session, each time
        return Fate.SHARD
    is_of_statement = meaning_of(code) in {ErrorMeaning.DATA, ErrorMeaning.STATEMENT}
    return Fate.OPERATION if is_of_statement else Fate.SHARD


class Shard:
    """A shard that refuses, at a place of a batch's transaction, what is called bad."""

    def __init__(self, address: ShardAddress, line: PlainErrorsLine) -> None:
        self._address = address
        self._line = line

    @asynccontextmanager
    async def refusing(self, place: str, code: str) -> AsyncIterator[None]:
        """Answer *code* at a place for as long as the context."""
        text = {"begin": b"BEGIN ", "probe": PROBE}.get(place)
        if text is None:
            await execute(self._address.connection_string, f"INSERT INTO refused VALUES ('{place}', '{code}')")
        else:
            self._line.refused[text] = code
        try:
            yield
        finally:
            self._line.refused.clear()
            await execute(self._address.connection_string, "DELETE FROM refused")

    async def fate_of(self, place: str, code: str, address: ShardAddress) -> Fate:
        """Apply a batch of two tenants, one of them with an operation that is refused; return what becomes of it."""
        pool = ShardPool(address, size=2, timeouts=TIMEOUTS)
        case, other = TenantCase(pool, TENANT), TenantCase(pool, OTHER)
        names = [f"{name} {code} {place} {address.place}" for name in ("first", "BAD", "behind", "last")]
        batch = [
            (case if number in {1, 2} else other).operation("create", name, {"name": name})
            for number, name in enumerate(names)
        ]
        claim = PositionClaim("a BAD stream", f"{code} {place} {address.place}", StreamPosition("7/0"))
        try:
            async with self.refusing(place, code):
                outcomes = await writer_of(pool).apply(batch, claim)
        except ShardUnavailableError:
            return Fate.SHARD
        finally:
            await pool.close()
        return FATES[tuple(outcome.disposition.value for outcome in outcomes)]


@pytest.fixture
async def line(make_shard: ShardMaker) -> AsyncIterator[PlainErrorsLine]:
    """Give a line to a shard with two tenants."""
    address = await make_shard()
    pool = ShardPool(address, size=1)
    for tenant in (TENANT, OTHER):
        await add_tenant(pool, tenant)
    await pool.close()
    await execute(address.connection_string, REFUSING)
    line = PlainErrorsLine(address)
    async with line.opened():
        yield line


@pytest.fixture
def shard(line: PlainErrorsLine) -> Shard:
    """Give that shard."""
    return Shard(line.direct_address, line)


@pytest.mark.parametrize("place", PLACES)
async def test_error_of_the_server_holds_what_the_table_says(shard: Shard, line: PlainErrorsLine, place: str) -> None:
    codes = ALL_CODES if place == "resources" else CODES

    found = {code: await shard.fate_of(place, code, line.address) for code in codes}

    assert found == {code: fate_by_table(code, place) for code in codes}


@pytest.mark.parametrize("place", ["position", "resources"])
async def test_error_that_a_trigger_raises_is_about_its_row(shard: Shard, line: PlainErrorsLine, place: str) -> None:
    found = {code: await shard.fate_of(place, code, line.direct_address) for code in CODES}

    assert found == dict.fromkeys(CODES, Fate.OPERATION if place in OF_OPERATIONS else Fate.SHARD)


async def test_error_of_a_probe_is_the_shards(shard: Shard, line: PlainErrorsLine) -> None:
    for code in CODES:
        pool = ShardPool(line.address, size=1, timeouts=TIMEOUTS)
        async with shard.refusing("probe", code):
            with pytest.raises(RetryableError, match=f"({code})"):
                await writer_of(pool).probe()
        assert pool.is_healthy is (meaning_of(code) is ErrorMeaning.TRY_AGAIN)
        await pool.close()


async def test_error_of_a_control_message_counts_as_its_try_where_the_table_blames_an_operation(
    shard: Shard, line: PlainErrorsLine
) -> None:
    address = line.address
    rename = ResourceRename(*TENANT, "patient", "old", "BAD", None, datetime(2026, 3, 1, tzinfo=UTC))
    tries: set[str] = set()
    for code in CODES:
        async with routed_shards([address]) as routed:
            routed.register(TENANT, address.shard_id)
            pool = routed.pools.ensure_pool(address)
            await writer_of(pool).apply([TenantCase(pool, TENANT).operation("create", "old", {})])
            async with shard.refusing("resources", code):
                try:
                    await routed.changes.rename(rename)
                except RefusedOnShardError:
                    tries.add(code)
                except RetryableError:
                    pass

    blamed = {code for code in CODES if fate_by_table(code, "resources") is Fate.OPERATION}
    assert tries == blamed - {"57014"}
