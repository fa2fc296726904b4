"""ListShards of the local Kinesis: filters and pages. Pure.

Every page shows the stream at the time of its request, as in AWS: after a reshard between two pages the second shows
the children, while the first has shown the parent as open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simplu_local.kinesis.errors import KinesisError, invalid_argument, resource_in_use
from simplu_local.kinesis.model import KinesisAccount, LocalStream
from simplu_local.kinesis.requests import ListShards
from simplu_local.kinesis.stream_shard import LocalStreamShard
from simplu_local.kinesis.tokens import PageToken, seal_token, unseal_token

LISTABLE = frozenset({"ACTIVE", "UPDATING"})  # API_ListShards, ResourceInUseException


def list_page(
    account: KinesisAccount, request: ListShards, stream_of: Callable[[ListShards], LocalStream], now_ms: int
) -> tuple[Sequence[LocalStreamShard], str | None]:
    """Return the stream shards of one page and the token of the next page; none after the last (API_ListShards)."""
    if request.next_token is None:
        stream = stream_of(request)
        if (created := request.stream_creation_timestamp) is not None and round(created * 1000) != stream.created_ms:
            raise KinesisError("ResourceNotFoundException", f"stream {stream.name} was not created at {created}")
        query = _parse_query(request, stream, now_ms)
    else:
        query = _continue_query(account, request, now_ms)
        stream = account.find(query.stream)
        if stream.created_ms != query.created_ms:
            raise KinesisError("ResourceNotFoundException", f"stream {query.stream} was deleted and created again")
    if stream.status not in LISTABLE:
        raise resource_in_use(f"stream {stream.name} is {stream.status}")
    listed = [
        one
        for one in stream.stream_shards.values()
        if one.stream_shard_id > query.after and _matches_filter(one, stream, query)
    ]
    page = listed[: min(request.max_results, account.options.page_size)]
    if len(page) == len(listed):
        return page, None
    return page, seal_token(_continue_after(query, page[-1], now_ms))


def _parse_query(request: ListShards, stream: LocalStream, now_ms: int) -> PageToken:
    shard_filter = request.shard_filter
    filter_type = shard_filter.type if shard_filter else "FROM_TRIM_HORIZON"
    filter_ms = 0
    after = request.exclusive_start_shard_id or ""
    if shard_filter and filter_type == "AFTER_SHARD_ID":
        if shard_filter.shard_id is None:
            raise invalid_argument("ShardFilter AFTER_SHARD_ID: expected a ShardId")
        after = max(after, shard_filter.shard_id)
    if shard_filter and filter_type in {"AT_TIMESTAMP", "FROM_TIMESTAMP"}:
        if shard_filter.timestamp is None:
            raise invalid_argument(f"ShardFilter {filter_type}: expected a Timestamp")
        filter_ms = round(shard_filter.timestamp * 1000)
    return PageToken(stream.name, stream.created_ms, after, filter_type, filter_ms, now_ms)


def _continue_query(account: KinesisAccount, request: ListShards, now_ms: int) -> PageToken:
    """Return the query in the token of *request*: it holds all members but MaxResults, which are rejected beside it."""
    if request.stream_name or request.exclusive_start_shard_id or request.stream_creation_timestamp:
        raise invalid_argument("NextToken and StreamName cannot be provided together")
    if request.shard_filter:
        raise invalid_argument("NextToken and ShardFilter cannot be provided together")
    token = unseal_token(request.next_token or "")
    if not isinstance(token, PageToken):
        raise invalid_argument("expected a NextToken that ListShards returned")
    if now_ms - token.issued_ms > account.options.page_token_ttl_ms:
        raise KinesisError("ExpiredNextTokenException", f"the token was issued {now_ms - token.issued_ms} ms ago")
    return token


def _continue_after(query: PageToken, last: LocalStreamShard, now_ms: int) -> PageToken:
    return PageToken(
        query.stream, query.created_ms, last.stream_shard_id, query.filter_type, query.filter_ms, issued_ms=now_ms
    )


def _matches_filter(stream_shard: LocalStreamShard, stream: LocalStream, query: PageToken) -> bool:
    """Return whether *stream_shard* passes the filter (API_ShardFilter); times are at least the trim horizon."""
    opened_ms, closed_ms = stream_shard.opened_ms, stream_shard.closed_ms
    at_ms = max(query.filter_ms, stream.trim_horizon_ms)
    match query.filter_type:
        case "AT_LATEST":
            return closed_ms is None
        case "AT_TRIM_HORIZON":
            return opened_ms <= stream.trim_horizon_ms
        case "AT_TIMESTAMP":
            return opened_ms <= at_ms and (closed_ms is None or closed_ms >= at_ms)
        case "FROM_TIMESTAMP":
            return closed_ms is None or closed_ms >= at_ms
    return True  # FROM_TRIM_HORIZON, AFTER_SHARD_ID
