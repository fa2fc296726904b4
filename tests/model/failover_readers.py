"""Readers of a stream shard as a shard that fails over sees them: the operations they send there, and those pending."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from model.reader_model import FREE, CatchUp, Move, Reader, ReaderModel, Scene
from model.search import Memory
from msgspec.structs import replace

A = 0  # the shard that fails over


class Readers(Protocol):
    """What readers may do, and what they know; a reader itself is only handed back."""

    def start(self, checkpoint: int) -> Any: ...

    def moves(self, reader: Any, *, is_troubled: bool, barred: tuple[int, ...]) -> Sequence[Move]:
        """Return what a reader may do by itself and with the other shard; it may not catch up tenants *barred*."""
        ...

    def ready(self, reader: Any) -> tuple[int, ...]: ...

    def settled(self, reader: Any, operation: int) -> Any: ...

    def refused(self, reader: Any, operation: int) -> Any: ...

    def rewound(self, reader: Any, starts: Mapping[int, int]) -> Any:
        """Return a reader that holds tenants from their starts, or from where it owes them, if that is lower."""
        ...

    def pending(self, reader: Any, tenants: Collection[int]) -> int: ...

    def held(self, reader: Any) -> tuple[int, ...]: ...


class WholeReaders(ReaderModel):
    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        # A reader is in many states of a model.
        self._moves: Memory[tuple[Reader, bool, tuple[int, ...]], tuple[Move, ...]] = Memory()

    def moves(self, reader: Reader, *, is_troubled: bool, barred: tuple[int, ...]) -> Sequence[Move]:
        key = (reader, is_troubled, barred)
        moves = self._moves.get(key)
        if moves is None:
            moves = self._moves[key] = tuple(self._moves_of(reader, barred, is_troubled=is_troubled))
        return moves

    def _moves_of(self, reader: Reader, barred: Collection[int], *, is_troubled: bool) -> Iterator[Move]:
        if reader.dispatch < len(self.scene.tenants):
            yield self._dispatch(reader)
        for number, operation in ((number, lane[0]) for number, lane in enumerate(reader.lanes) if lane):
            if number != A and is_troubled and self.scene.tenants[operation] in self.scene.troubled:
                yield self._fail(reader, operation, number)
            elif number != A:
                yield Move(f"commit {operation}", _without_first(reader, number), operation)
        if any(before != FREE for before in reader.held):
            yield from self._lift(reader, barred, is_troubled=is_troubled)
            for catch_up in reader.catch_ups:
                yield from self._catch_up(reader, catch_up)

    def ready(self, reader: Reader) -> tuple[int, ...]:
        return reader.lanes[A][:1]

    def settled(self, reader: Reader, operation: int) -> Reader:
        return _without_first(reader, A)

    def refused(self, reader: Reader, operation: int) -> Reader:
        return self._fail(reader, operation, A).reader

    def rewound(self, reader: Reader, starts: Mapping[int, int]) -> Reader:
        """Return a reader that holds tenants from their starts or before, but for those it has not read up to."""
        starts = {tenant: start for tenant, start in starts.items() if start < reader.dispatch}
        held = list(reader.held)
        for tenant, start in starts.items():
            held[tenant] = min(start, held[tenant], self.pending(reader, [tenant]))
        left = ((one.position, tuple(t for t in one.tenants if t not in starts)) for one in reader.catch_ups)
        return replace(
            reader,
            lanes=tuple(tuple(one for one in lane if self.scene.tenants[one] not in starts) for lane in reader.lanes),
            held=tuple(held),
            catch_ups=tuple(CatchUp(position, tenants) for position, tenants in left if tenants),
        )

    def pending(self, reader: Reader, tenants: Collection[int] | None = None) -> int:
        tenants = range(len(self.scene.shards)) if tenants is None else tenants
        sent = (one for lane in reader.lanes for one in lane if self.scene.tenants[one] in tenants)
        at = (one.position for one in reader.catch_ups if not {*one.tenants}.isdisjoint(tenants))
        return min((reader.dispatch, *sent, *at, *(reader.held[tenant] for tenant in tenants)))

    def held(self, reader: Reader) -> tuple[int, ...]:
        return tuple(tenant for tenant, before in enumerate(reader.held) if before != FREE)


class PlainReaders:
    """Readers of which only each tenant's next operation is known. All tenants are of the shard, none is in trouble."""

    def __init__(self, scene: Scene, *, end: int | None = None) -> None:
        self._scene = scene
        self._end = len(scene.tenants) if end is None else end
        self._all = range(len(scene.shards))
        # By tenant, by position.
        self._following = [
            [
                next((at for at in range(position, self._end) if scene.tenants[at] == tenant), self._end)
                for position in range(len(scene.tenants) + 1)
            ]
            for tenant in self._all
        ]

    def start(self, checkpoint: int) -> tuple[int, ...]:
        return tuple(self._next(tenant, checkpoint) for tenant in self._all)

    def moves(self, reader: tuple[int, ...], *, is_troubled: bool, barred: tuple[int, ...]) -> Sequence[Move]:
        return ()

    def ready(self, reader: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted({*reader} - {self._end}))

    def settled(self, reader: tuple[int, ...], operation: int) -> tuple[int, ...]:
        return tuple(self._next(tenant, at + 1) if at == operation else at for tenant, at in enumerate(reader))

    def refused(self, reader: tuple[int, ...], operation: int) -> tuple[int, ...]:
        return reader

    def rewound(self, reader: tuple[int, ...], starts: Mapping[int, int]) -> tuple[int, ...]:
        return tuple(min(at, self._next(tenant, starts.get(tenant, at))) for tenant, at in enumerate(reader))

    def pending(self, reader: tuple[int, ...], tenants: Collection[int] | None = None) -> int:
        return min((self._end, *(reader[tenant] for tenant in (self._all if tenants is None else tenants))))

    def held(self, reader: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(tenant for tenant, at in enumerate(reader) if at < max(reader))

    def _next(self, tenant: int, position: int) -> int:
        return self._following[tenant][position]


def _without_first(reader: Reader, number: int) -> Reader:
    lanes = reader.lanes
    return replace(reader, lanes=(*lanes[:number], lanes[number][1:], *lanes[number + 1 :]))
