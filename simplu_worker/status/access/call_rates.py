"""The rate of calls over HTTP, for each peer. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

PEERS_MAX: Final = 1000


class CallRates:
    """A token bucket for each peer: *per_s* calls a second, and *burst* at once.

    At most PEERS_MAX peers are remembered; the one that called longest ago is forgotten first.
    """

    def __init__(self, *, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._peers: OrderedDict[str, tuple[float, float]] = OrderedDict()  # the calls left, and when that was

    def __repr__(self) -> str:
        return f"CallRates({self._per_s:g}/s, {len(self._peers)} peers)"

    def wait_s(self, peer: str, now: float) -> float:
        """Count a call of *peer* at *now* (monotonic); return 0, or the time after which it may call again."""
        left, counted_at = self._peers.pop(peer, (self._burst, now))
        left = min(self._burst, left + (now - counted_at) * self._per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._peers[peer] = (left if wait_s else left - 1, now)
        if len(self._peers) > PEERS_MAX:
            self._peers.popitem(last=False)
        return wait_s
