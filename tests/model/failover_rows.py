"""The row with the position of a stream shard on a Postgres shard, and its tokens.

A token is random. Here it is a number, and states that differ only in these numbers are one: tokens are renamed after
every step, and forgotten when no row can have them any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from model.search import StatePart

NO_TOKEN = 0  # of a row that is not there
OUTDATED = -1  # in place of a token that no row can have any more
TO_ADOPT = -2  # in place of the token of a reader that found another
NEW = -3  # likewise of one that has yet to look
TO_COME = 1000  # in place of a new token, until it is renamed


class Row(StatePart, frozen=True):
    """A shard's position of a stream shard: for the shard's tenants, everything before it is applied."""

    token: int
    pending_from: int  # for tenants held
    read_to: int  # for all others
    held: tuple[int, ...] = ()
    is_after_parents: bool = False  # everything of the parents of the stream shard is applied here too

    def claimed(self, tenant: int) -> int:
        return self.pending_from if tenant in self.held else self.read_to


NO_ROW = Row(NO_TOKEN, 0, 0)


def names_of(rows: Iterable[int], adrift: Iterable[tuple[int, tuple[int, ...]]] = ()) -> dict[int, int]:
    """Return new names for the tokens that the row has or may have again, and those of transactions still to come."""
    names = {NO_TOKEN: NO_TOKEN}
    for token in rows:
        names.setdefault(token, len(names))
    has_row = NO_TOKEN not in rows
    waiting = list(adrift)
    while waiting and (
        found := next((one for one in waiting if any(t in names and (t or not has_row) for t in one[1])), None)
    ):
        waiting.remove(found)
        names.setdefault(found[0], len(names))
    if has_row:
        del names[NO_TOKEN]
    return names


@cache
def names_of_rows(*rows: int) -> Mapping[int, int]:
    """Return the same where no transaction is still to come: a search asks for few combinations, and often."""
    return names_of(rows)
