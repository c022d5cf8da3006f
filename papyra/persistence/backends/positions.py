"""Positions of one store: those who ask for them, and what becomes of a store that has none."""

from __future__ import annotations

from typing import TypeAlias, assert_never, cast

import msgspec

from papyra._safe_repr import shown
from papyra.exceptions import PositionsUnsupported, StoreAccessDenied, StoreWrongType
from papyra.persistence.backends._session import StoreSession
from papyra.persistence.backends.store import Positions, Store
from papyra.persistence.messages import (
    ListPositions,
    LoadedPosition,
    LoadPosition,
    PositionNames,
    PositionRemoved,
    PositionSaved,
    RemovePosition,
    SavePosition,
)
from papyra.persistence.reports import StoreSummary

#: Names of a page, at most.
_PAGE = 1_000

PositionRequest: TypeAlias = LoadPosition | SavePosition | RemovePosition | ListPositions
PositionReply: TypeAlias = LoadedPosition | PositionSaved | PositionRemoved | PositionNames


class PositionKeeper:
    """Carries out requests for the positions of one store, in its session."""

    def __init__(self, store: Store, session: StoreSession) -> None:
        self._store = store
        self._session = session

    async def handle(self, request: PositionRequest) -> PositionReply:
        """Carry out a request. Raises `PositionsUnsupported`, and what the store does."""
        match request:
            case LoadPosition():
                return await self._load(request)
            case SavePosition():
                return await self._save(request)
            case RemovePosition():
                return await self._remove(request)
            case ListPositions():
                return await self._list(request)
            case _:
                assert_never(request)

    async def _load(self, request: LoadPosition) -> LoadedPosition:
        load = positions_of(self._store).load_position
        return LoadedPosition(await self._session.attempt("read", load, request.name))

    async def _save(self, request: SavePosition) -> PositionSaved:
        save = positions_of(self._store).save_position
        name, data, expected = request.name, request.data, request.expected
        return PositionSaved(await self._session.attempt_as_writer(save, name, data, expected))

    async def _remove(self, request: RemovePosition) -> PositionRemoved:
        remove = positions_of(self._store).remove_position
        name, expected = request.name, request.expected
        return PositionRemoved(await self._session.attempt_as_writer(remove, name, expected))

    async def _list(self, request: ListPositions) -> PositionNames:
        names = positions_of(self._store).list_positions
        limit = _PAGE if request.limit is None else min(request.limit, _PAGE)
        page = tuple(await self._session.attempt("read", names, request.after, limit))
        return PositionNames(page, more=len(page) == limit)


async def counting_positions(store: Store, summary: StoreSummary) -> StoreSummary:
    """Return the summary with the number of positions, whose names are listed."""
    if not isinstance(store, Positions):
        return summary
    count, last = 0, None
    try:
        while page := await store.list_positions(last, _PAGE):
            count, last = count + len(page), page[-1]
            if len(page) < _PAGE:
                break
    except (OSError, StoreAccessDenied, StoreWrongType):
        return summary  # whoever needs one of them is told why
    return msgspec.structs.replace(summary, positions=count)


def positions_of(store: Store) -> Positions:
    """Return `store` as one that keeps positions; raise `PositionsUnsupported` if it does not."""
    if isinstance(store, Positions):
        return cast("Positions", store)
    raise PositionsUnsupported(f"a store of kind {shown(store.name)} keeps no positions")
