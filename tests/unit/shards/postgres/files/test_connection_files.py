"""Which files asyncpg opens for a connection: those of the options, of the variables, or in the home."""

from __future__ import annotations

import pytest

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.files.connection_files import NamedFile, files_of

FOLDERS = ("/etc/ssl",)
OWN = ["/home/w/.postgresql/postgresql.crt", "/home/w/.postgresql/postgresql.key"]
AUTHORITIES = ["/home/w/.postgresql/root.crt", "/home/w/.postgresql/root.crl"]


def named(options: str, *, user: str = "u:p", **environ: str) -> list[NamedFile]:
    """Return the files of a connection string with *options*."""
    address = ShardAddress("shard-1", f"postgresql://{user}@a.internal/d?{options}", file_folders=FOLDERS)
    return list(files_of(address, environ, "/home/w"))


@pytest.mark.parametrize(
    ("options", "environ", "paths"),
    [
        ("sslmode=disable", {}, []),
        ("", {}, OWN),
        ("sslmode=verify-ca", {}, OWN + AUTHORITIES),
        ("sslmode=verify-full&sslrootcert=/a&sslcert=/b&sslkey=/c", {"PGSSLCRL": "/d"}, ["/b", "/c", "/a", "/d"]),
        (
            "sslmode=require&sslcert=/b",
            {"PGSSLCERT": "/e", "PGSSLROOTCERT": "/f"},
            ["/b", OWN[1], "/f", AUTHORITIES[1]],
        ),
        ("sslmode=disable&passfile=/a", {}, []),
    ],
)
def test_files_are_those_that_the_mode_needs(options: str, environ: dict[str, str], paths: list[str]) -> None:
    assert [file.path for file in named(options, **environ)] == paths


@pytest.mark.parametrize(
    ("options", "environ", "paths"),
    [
        ("", {}, ["/home/w/.pgpass"]),
        ("", {"PGPASSFILE": "/a"}, ["/a"]),
        ("&passfile=/b", {"PGPASSFILE": "/a"}, ["/b"]),
    ],
)
def test_password_file_is_read_when_there_is_no_password(
    options: str, environ: dict[str, str], paths: list[str]
) -> None:
    assert [file.path for file in named(f"sslmode=disable{options}", user="u", **environ)] == paths


def test_folders_bound_only_what_the_address_names() -> None:
    assert named("sslmode=require&sslrootcert=/a&passfile=/b", user="u", PGSSLKEY="/c") == [
        NamedFile("option passfile", "/b", is_required=False, folders=FOLDERS),
        NamedFile("~/.postgresql/postgresql.crt", OWN[0], is_required=False, folders=None),
        NamedFile("PGSSLKEY", "/c", is_required=False, folders=None),
        NamedFile("option sslrootcert", "/a", is_required=True, folders=FOLDERS),
        NamedFile("~/.postgresql/root.crl", AUTHORITIES[1], is_required=False, folders=None),
    ]
