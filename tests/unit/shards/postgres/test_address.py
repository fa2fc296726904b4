from __future__ import annotations

from importlib import import_module
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.address import (
    OPTION_VALUES,
    HostPort,
    ShardAddress,
    hosts_of,
    places_of,
    without_hosts,
)
from simplu_worker.shards.postgres.connector import TargetSessionAttrs

SECRET = "correct-horse"
asyncpg_utils: Any = import_module("asyncpg.connect_utils")  # its stubs leave out the private function
LOCAL = ("*.internal", "10.0.0.?", "::1", "db")


def address(connection_string: str, shard_id: str = "shard-1") -> ShardAddress:
    return ShardAddress(shard_id=shard_id, connection_string=connection_string)


def connected_hosts(connection_string: str) -> list[str]:
    return [host for place in places_of(connection_string) for host in connected_hosts_of(connection_string, place)]


def connected_hosts_of(connection_string: str, place: HostPort) -> list[str]:
    hosts, _ = asyncpg_utils._parse_connect_dsn_and_args(
        dsn=without_hosts(connection_string),
        host=place.host,
        port=place.port,
        user=None,
        password=None,
        passfile=None,
        database=None,
        ssl=None,
        service=None,
        servicefile=None,
        direct_tls=None,
        server_settings=None,
        target_session_attrs=None,
        krbsrvname=None,
        gsslib=None,
    )
    return [host if isinstance(host, str) else host[0] for host in hosts]


@pytest.mark.parametrize(
    ("connection_string", "hosts"),
    [
        (f"postgresql://user:{SECRET}@a.internal:5432/shard", ["a.internal"]),
        ("postgresql://a.internal/shard", ["a.internal"]),
        ("postgresql://user@A.Internal/shard", ["a.internal"]),
        (f"POSTGRESQL://user:{SECRET}@a.internal/shard", ["a.internal"]),
        (f"postgresql://user:{SECRET}@10.0.0.7:1/shard", ["10.0.0.7"]),
        (f"postgresql://user:{SECRET}@[::1]:65535/shard", ["::1"]),
        (f"postgresql://user:{SECRET}@a.internal:5432,b.internal:5433/shard", ["a.internal", "b.internal"]),
        (f"postgresql://user:{SECRET}@db:5432,[::1]:5433,[::1]/shard", ["db", "::1", "::1"]),
        ("postgresql://[::1]:1/[::1]:1", ["::1"]),
        (f"postgresql://user:{SECRET}%40%2F%3F%23%3A@a.internal/shard", ["a.internal"]),
        (f"postgresql://us%40er:{SECRET}@a.internal/sh%40rd", ["a.internal"]),
        (f"postgresql://user:{SECRET}@%61.internal/shard", ["a.internal"]),
        (f"postgresql://user:{SECRET}@a.internal/shard?sslmode=require&application_name=x", ["a.internal"]),
        (f"postgresql://user:{SECRET}@a.internal/shard?target_session_attrs=read-write", ["a.internal"]),
        (f"postgresql://user:{SECRET}@a.internal/{'d' * 63}?application_name={'x' * 63}", ["a.internal"]),
        ("postgresql://user@a.internal/shard?passfile=/run/secrets/with%20space", ["a.internal"]),
        (f"postgresql://user@a.internal/X?passfile=/{'x' * 4055}", ["a.internal"]),
    ],
)
def test_address_is_usable_when_all_its_hosts_are_allowed(connection_string: str, hosts: list[str]) -> None:
    one = address(connection_string)

    assert one.validate(LOCAL) is one
    assert one.validate(()) is one
    assert hosts_of(connection_string) == hosts
    assert [host.lower() for host in connected_hosts(connection_string)] == hosts
    assert "".join(connection_string.split(one.place.partition("/")[0], maxsplit=1)) == without_hosts(connection_string)
    assert SECRET not in one.place + repr(one) + str(one)
    assert one.place == connection_string.partition("://")[2].rpartition("@")[2].partition("?")[0]


USER = f"postgresql://user:{SECRET}"
SHARD = f"{USER}@a.internal/shard"
NO_PATH = "expected the whole path of a file"
NO_IAM = "option auth=rds-iam: expected a user without a password and a passfile"
REFUSED = {
    "expected postgresql://user:password@host:port/database": (
        *("", "nonsense", f"mysql://user:{SECRET}@a.internal/shard", f"postgresql:user:{SECRET}@a.internal/shard"),
        *(
            f"postgresql:///shard?password={SECRET}",
            f"{USER}@/shard",
            f"{USER}@a.internal",
            f"{USER}@a.internal/",
            f"{USER}@a.internal,/shard",
        ),
        *(f"{USER}@::1/shard", f"{USER}@[::1/shard", f"{USER}@[::1]5432/shard", f"{USER}@[10.0.0.1]/shard"),
        *(f"{USER}@a.internal:{port}/shard" for port in ("port", "0", "65536", "５432")),
        *(f"{USER}@a internal/shard", f"{USER}@a%00.internal/shard", f"{USER}@a%0A.internal/shard", f"{SHARD}?sslmode"),
    ),
    "expected at most 4096 characters": (f"{USER}@a.internal/{'x' * 4096}",),
    "expected one @, before the host": (
        *(f"postgresql://user@evil.com:5432,{SECRET}@a.internal/shard", f"{USER}@evil.com@a.internal/shard"),
        *(f"postgresql://db/x@evil.com:{SECRET}", f"postgresql://db/x#{SECRET}@a"),
        *(f"postgresql://db:1/{SECRET}@a.internal/shard", f"postgresql://db:1/d?application_name={SECRET}@a.internal"),
    ),
    "user: expected no control characters": (f"postgresql://us%00options%00-c%20x:{SECRET}@a.internal/shard",),
    "password: expected no control characters": (f"{USER}%00@a.internal/shard",),
    "database: expected no control characters": (
        f"{SHARD}%00options%00x",
        f"{USER}@a.internal/sh%0Aard",
        f"{USER}@a.internal/%00",
    ),
    "expected no control characters": (f"{USER}@a.in\nternal/shard", f"postgresql://us\ter:{SECRET}@a.internal/shard"),
    "option sslmode: expected one of disable, ": (f"{SHARD}?sslmode=none",),
    "option target_session_attrs: expected one of any, ": (f"{SHARD}?target_session_attrs=master",),
    "option sslmode: expected it once": (f"{SHARD}?sslmode=require&sslmode=disable",),
    f"option sslrootcert: {NO_PATH}": (f"{SHARD}?sslrootcert=root.crt",),
    f"option passfile: {NO_PATH}": tuple(
        f"{SHARD}?passfile={path}" for path in ("secrets", "", "/run/../etc/x", "/run/x%0Ay")
    ),
    "option application_name: expected a text that can be printed": (f"{SHARD}?application_name=a%00b",),
    "option auth: expected one of rds-iam": ("postgresql://worker@a/shard?auth=iam",),
    "option auth: expected it once": ("postgresql://worker@a/shard?auth=rds-iam&auth=rds-iam",),
    NO_IAM: (
        *(f"{SHARD}?auth=rds-iam", "postgresql://worker@a/shard?auth=rds-iam&passfile=/p"),
        "postgresql://a/shard?auth=rds-iam",
    ),
    "option auth=rds-iam: expected the sslmode require, verify-ca,": (
        "postgresql://worker@a/shard?auth=rds-iam&sslmode=prefer",
    ),
    **{
        f"option {name} is not allowed": (f"{SHARD}?sslmode=require&{name}={SECRET}",)
        for name in ("host", "port", "user", "password", "options", "search_path", "HOST", "a")
    },
}


@pytest.mark.parametrize(
    ("connection_string", "complaint"), [(one, complaint) for complaint, some in REFUSED.items() for one in some]
)
def test_address_is_refused_when_it_is_not_what_it_looks_like(connection_string: str, complaint: str) -> None:
    with pytest.raises(PermanentError) as raised:
        address(connection_string).validate(())

    assert str(raised.value).startswith(f"connection string of shard shard-1: {complaint}")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("hosts", ["evil.com", "a.internal.evil.com", "a.internal,evil.com", "[::2]", "%2Ftmp"])
def test_address_is_refused_when_one_of_its_hosts_is_not_allowed(hosts: str) -> None:
    one = address(f"{USER}@{hosts}/shard")
    with pytest.raises(PermanentError, match="is not in DATABASE_ALLOWED_HOSTS") as raised:
        one.validate(LOCAL)

    assert SECRET not in str(raised.value)
    one.validate(())


@pytest.mark.parametrize(("shard_id", "is_usable"), [("", False), ("x", True), ("é" * 128, True), ("x" * 129, False)])
def test_address_needs_an_id_of_bounded_length(shard_id: str, is_usable: bool) -> None:  # noqa: FBT001
    one = address("postgresql://db/shard", shard_id)
    if is_usable:
        assert one.validate(()) is one
        return
    with pytest.raises(PermanentError, match="shard id: expected 1 to 128 characters"):
        one.validate(())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("shard shard-1 at a.internal/shard: refused", "refused"),
        ("shard shard-1: refused", "refused"),
        ("shard shard-2: refused", "shard shard-2: refused"),
        ("refused, shard shard-1: ", "refused, shard shard-1: "),
        ("refused by shard shard-1 at a.internal/shard: ", "refused by shard shard-1 at a.internal/shard: "),
    ],
)
def test_message_without_the_name_has_the_rest(message: str, expected: str) -> None:
    one = address("postgresql://a.internal/shard")
    assert one.without_name(message) == expected
    assert one.without_name(one.error_with_place("refused")) == "refused"


PIECES = (
    "postgresql:// user : secret @ / ? # , [ ] ::1 db evil.com a.internal %40 %2F %00 % é \\ "
    "5432 99999 = & host sslmode require shard"
)


@given(st.lists(st.sampled_from([*PIECES.split(), " ", "\n"]), max_size=14), st.sampled_from([(), LOCAL]))
@example(["@", "evil.com", ":", "5432", ",", "user", "@", "db", "/", "shard"], LOCAL)
def test_any_text_is_refused_or_leads_only_where_it_was_checked(
    pieces: list[str], allowed_hosts: tuple[str, ...]
) -> None:
    one = address("postgresql://user:" + "".join(pieces))
    try:
        one.validate(allowed_hosts)
    except PermanentError:
        return
    assert [host.lower() for host in connected_hosts(one.connection_string)] == hosts_of(one.connection_string)


def test_places_are_hosts_with_their_ports() -> None:
    assert places_of("postgresql://u:p@A.internal:1,[::1]:2,%2FRun%2Fpg,b/shard") == [
        ("A.internal", 1),
        ("::1", 2),
        ("/Run/pg", None),
        ("b", None),
    ]


def test_address_takes_the_words_of_the_libraries() -> None:
    assert set(OPTION_VALUES["target_session_attrs"]) == set(TargetSessionAttrs)
    assert set(OPTION_VALUES["sslmode"]) == {
        mode.name.replace("_", "-") for mode in import_module("asyncpg.connect_utils").SSLMode
    }


@pytest.mark.parametrize(
    ("string", "user", "driver_string"),
    [
        (
            "postgresql://worker@a.internal/shard?auth=rds-iam",
            "worker",
            "postgresql://worker@a.internal/shard?sslmode=require",
        ),
        (
            "postgresql://work%40er:@a:1,b:2/shard?application_name=x+y&auth=rds-iam&sslmode=verify-full",
            "work@er",
            "postgresql://work%40er:@a:1,b:2/shard?sslmode=verify-full&application_name=x+y",
        ),
        (
            "postgresql://w@a/d?auth=rds-iam&application_name=",
            "w",
            "postgresql://w@a/d?sslmode=require&application_name=",
        ),
        ("postgresql://worker:pw@a.internal/shard?sslmode=prefer", None, None),
        ("postgresql://a.internal/shard", None, None),
    ],
)
def test_string_for_the_driver_has_no_option_of_ours_and_encrypts_with_iam(
    string: str, user: str | None, driver_string: str | None
) -> None:
    one = address(string).validate(())
    assert (one.rds_user, one.driver_string) == (user, driver_string or string)


@pytest.mark.parametrize(
    ("string", "expected"),
    [
        ("postgresql://worker:correct-horse@db/app", "postgresql://re%40d%2Fer{}@db/app"),
        ("postgres://worker@[::1]:5433,db:1/app", "postgres://re%40d%2Fer{}@[::1]:5433,db:1/app"),
        ("postgresql://db/app?application_name=", "postgresql://re%40d%2Fer{}@db/app?application_name="),
        ("postgresql://%2Frun%2Fpg/app", "postgresql://re%40d%2Fer{}@%2Frun%2Fpg/app"),
    ],
)
def test_address_for_a_reader_has_nothing_of_its_own_user(string: str, expected: str) -> None:
    one = ShardAddress("shard-1", string)
    assert one.for_reader("re@d/er", None).connection_string == expected.format("")
    found = one.for_reader("re@d/er", "p:w@/?#").validate(())
    assert found.connection_string == expected.format(":p%3Aw%40%2F%3F%23")
    assert found.shard_id == "shard-1"


def test_address_for_a_reader_uses_iam_only_where_the_reader_has_no_password() -> None:
    one = address("postgresql://worker@db/app?auth=rds-iam")
    assert one.for_reader("reader", None).validate(()).rds_user == "reader"
    found = one.for_reader("reader", "word", target="standby").validate(()).connection_string
    assert found == "postgresql://reader:word@db/app?sslmode=require&target_session_attrs=standby"


@pytest.mark.parametrize("option", ["sslrootcert", "sslcert", "sslkey", "passfile"])
def test_address_from_citrus_may_not_name_files(option: str) -> None:
    one = address(f"postgresql://worker@db/app?sslmode=require&{option}=/etc/ssl/a.pem")
    assert one.validate(()) == one
    with pytest.raises(PermanentError, match=f"option {option}: Citrus may not name files"):
        one.validate((), may_name_files=False)
    assert (one.validate_or_refuse(()), one.validate_or_refuse((), may_name_files=False).connection_string) == (one, "")


@pytest.mark.parametrize(
    ("string", "name"), [("postgresql://u:p@db/one", "one"), ("postgresql://db/a%20b", "a b"), ("postgresql://db", "")]
)
def test_database_is_the_path_of_the_address(string: str, name: str) -> None:
    assert address(string).database == name


@pytest.mark.parametrize(("most", "ratio"), [(8, 0.5), (1, 4.0), (0, 1.0), (None, None)])
def test_usage_is_that_of_the_room_for_businesses(most: int | None, ratio: float | None) -> None:
    assert ShardAddress("a", "", business_count=4, business_max=most).usage_ratio == ratio


OLD, NEW, STANDBY = (f"postgresql://u:secret@{host}/d" for host in ("old", "new", "standby"))


@pytest.mark.parametrize(
    ("used", "listed", "while_healthy", "else_"),
    [
        (OLD, (OLD, None), None, None),
        (OLD, (NEW, None), NEW, NEW),
        (OLD, (NEW, STANDBY), NEW, NEW),
        (OLD, (OLD, STANDBY), None, STANDBY),
        (STANDBY, (OLD, STANDBY), None, OLD),
    ],
)
def test_successor_is_another_listed_address_or_a_needed_standby(
    used: str, listed: tuple[str, str | None], while_healthy: str | None, else_: str | None
) -> None:
    shard = ShardAddress("a", listed[0], business_count=7, standby_string=listed[1])
    for is_healthy, expected in ((True, while_healthy), (False, else_)):
        found = ShardAddress("a", used).successor(shard, is_healthy=is_healthy)
        assert found == (None if expected is None else msgspec.structs.replace(shard, connection_string=expected))
    refused = msgspec.structs.replace(shard, refusal="not allowed")
    assert ShardAddress("a", "other").successor(refused, is_healthy=False) is None
