"""The worker that users come from, as far as its shards go: its table in both layouts, and what it writes with.

The public repository AdrianTuci1/simplu-api, folder resources-server.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

WRITTEN_AT = datetime(2026, 2, 1, 8, tzinfo=UTC)
SEVERAL_A_DAY = timedelta(minutes=7)

COLUMNS = """
    id BIGSERIAL PRIMARY KEY,
    {tenant},
    resource_type VARCHAR(100) NOT NULL,
    resource_id VARCHAR(255) NOT NULL,
    data {data} NOT NULL,
    start_date DATE,
    end_date DATE,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    updated_at TIMESTAMPTZ DEFAULT NOW(),
    shard_id VARCHAR(255)
"""
TENANT_COLUMNS = {
    True: "business_location_id VARCHAR(255) NOT NULL",
    False: "business_id VARCHAR(255) NOT NULL, location_id VARCHAR(255) NOT NULL",
}
INDEXES = """
CREATE INDEX IF NOT EXISTS idx_resources_type ON resources (resource_type);
CREATE INDEX IF NOT EXISTS idx_resources_resource_id ON resources (resource_id);
CREATE INDEX IF NOT EXISTS idx_resources_dates ON resources (start_date, end_date);
CREATE INDEX IF NOT EXISTS idx_resources_created_at ON resources (created_at);
"""


class TypescriptShard:
    """One shard of that worker, over a connection of its own; a tenant is a business and a location."""

    def __init__(
        self, connection: asyncpg.Connection[Any], *, is_joined: bool = True, data_type: str = "JSONB"
    ) -> None:
        self.connection = connection
        self._is_joined = is_joined
        self._data_type = data_type
        self._row_count = 0

    async def make(self) -> None:
        columns = COLUMNS.format(tenant=TENANT_COLUMNS[self._is_joined], data=self._data_type)
        await self.connection.execute(f"CREATE TABLE IF NOT EXISTS resources ({columns})")
        await self.connection.execute(INDEXES)
        if self._is_joined:
            await self.connection.execute(
                "CREATE INDEX IF NOT EXISTS idx_resources_business_location ON resources (business_location_id)"
            )

    async def insert(
        self,
        tenant: tuple[str, str],
        resource_type: str,
        resource_id: str,
        data: Any,
        *,
        at: datetime | None = None,
        updated_at: datetime | None = None,
    ) -> int:
        """Add a row, whether there is one of the same id or not; return its id. *data* may be text as it is."""
        self._row_count += 1
        at = at or WRITTEN_AT + self._row_count * SEVERAL_A_DAY
        columns, values = self._tenant(tenant)
        row_id = await self.connection.fetchval(
            f"INSERT INTO resources (resource_type, resource_id, data, created_at, updated_at, shard_id, {columns})"
            f" VALUES ($1, $2, $3, $4, $5, 'shard-1', {', '.join(f'${number + 6}' for number in range(len(values)))})"
            " RETURNING id",
            resource_type,
            resource_id,
            data if isinstance(data, str) else json.dumps(data),
            at,
            updated_at or at,
            *values,
        )
        assert isinstance(row_id, int)
        return row_id

    async def replace(self, tenant: tuple[str, str], resource_type: str, resource_id: str, data: Any) -> None:
        columns, values = self._tenant(tenant)
        named = " AND ".join(f"{column} = ${number + 4}" for number, column in enumerate(columns.split(", ")))
        await self.connection.execute(
            "UPDATE resources SET data = $3, updated_at = NOW()"
            f" WHERE resource_type = $1 AND resource_id = $2 AND {named}",
            resource_type,
            resource_id,
            json.dumps(data),
            *values,
        )

    async def delete(self, tenant: tuple[str, str], resource_type: str, resource_id: str) -> None:
        columns, values = self._tenant(tenant)
        named = " AND ".join(f"{column} = ${number + 3}" for number, column in enumerate(columns.split(", ")))
        await self.connection.execute(
            f"DELETE FROM resources WHERE resource_type = $1 AND resource_id = $2 AND {named}",
            resource_type,
            resource_id,
            *values,
        )

    def _tenant(self, tenant: tuple[str, str]) -> tuple[str, list[str]]:
        if self._is_joined:
            return "business_location_id", ["-".join(tenant)]
        return "business_id, location_id", list(tenant)
