"""Open the feed: the destinations of `FEED_FILE`, for all shards."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from simplu_worker.assembly.shards import Shards
from simplu_worker.config.settings import Settings
from simplu_worker.feed.allowed_hosts import AllowedHosts
from simplu_worker.feed.destinations.opening import open_destination
from simplu_worker.feed.feed import ConfiguredDestination, Feed
from simplu_worker.feed.feed_file import FeedFile
from simplu_worker.feed.feed_file_reading import FeedFileReloader, read_feed_file


class FeedParts(NamedTuple):
    """The feed of a replica, and what has it use another file."""

    feed: Feed
    reloader: FeedFileReloader


def make_feed(settings: Settings, shards: Shards, replica_name: str) -> FeedParts | None:
    """Return the feed of a replica; None without `FEED_FILE`. No request is made yet.

    Raises `ConfigurationError` for a file that cannot be used.
    """
    path = settings.feed_file
    if path is None:
        return None
    read = partial(read_feed_file, path, settings.feed_allowed_hosts)
    file = read()
    feed = Feed(
        shards.locator,
        shards.pools,
        shards.commits,
        name=replica_name,
        destinations=_configured(settings, file),
    )

    def use(new: FeedFile) -> None:
        feed.replace(_configured(settings, new))

    return FeedParts(feed, FeedFileReloader(file, read=read, use=use))


def _configured(settings: Settings, file: FeedFile) -> list[ConfiguredDestination]:
    allowed = AllowedHosts.parse(settings.feed_allowed_hosts)
    return [
        ConfiguredDestination(one.terms, partial(open_destination, one, region=settings.aws_region, allowed=allowed))
        for one in file.destinations
    ]
