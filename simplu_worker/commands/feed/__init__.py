"""The command line of `feed`."""

from __future__ import annotations

from cyclopts import App

from simplu_worker.commands.command_line import NO_OPTIONS, Apply, CommonOptions, parse_time

feed = App(name="feed")


@feed.command(name="show")
def show_feed(destination: str | None = None, /, *, common: CommonOptions = NO_OPTIONS) -> int:
    """Print each destination's lag, stops, waiting shards and latest refusals.

    Parameters
    ----------
    destination
        Its name in FEED_FILE; all of them without one.
    """
    from simplu_worker.commands.feed.destinations import show_feed

    return common.run(show_feed, destination)


@feed.command(name="replay")
def replay_feed(destination: str, /, *, since: str, apply: Apply = False, common: CommonOptions = NO_OPTIONS) -> int:
    """Send a destination all events since a time again, under the same ids.

    Parameters
    ----------
    destination
        Its name in FEED_FILE.
    since
        The time from which on changes are sent again, by RFC 3339; no offset means UTC.
    """
    from simplu_worker.commands.feed.destinations import replay_feed

    return common.run(replay_feed, destination, parse_time("--since", since), apply=apply)


@feed.command(name="skip")
def skip_feed(
    destination: str,
    /,
    *,
    shard: str,
    event: str | None = None,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Continue a destination that has stopped, or skip an event that it cannot take.

    The event that it refused is tried once more, and is kept as refused if it is refused again.

    Parameters
    ----------
    destination
        Its name in FEED_FILE.
    shard
        The shard id.
    event
        The id of an event that the destination cannot take; it is tried once more, and kept as refused if that fails.
    """
    from simplu_worker.commands.feed.destinations import skip_feed

    return common.run(skip_feed, destination, shard, event, apply=apply)


@feed.command(name="forget")
def forget_feed(destination: str, /, *, apply: Apply = False, common: CommonOptions = NO_OPTIONS) -> int:
    """Delete what shards keep for a destination that has left every FEED_FILE.

    Parameters
    ----------
    destination
        Its former name in FEED_FILE.
    """
    from simplu_worker.commands.feed.destinations import forget_destination

    return common.run(forget_destination, destination, apply=apply)
