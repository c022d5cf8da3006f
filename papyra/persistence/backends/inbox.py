"""The inbox of a writer: requests that others have posted are carried out, and answered."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from papyra._safe_repr import shown, text_of
from papyra.exceptions import InvalidRequest, PersistenceError
from papyra.persistence.backends._session import StoreSession
from papyra.persistence.backends.store import Inbox, Store
from papyra.persistence.inbox import (
    Answer,
    OperatorReply,
    OperatorRequest,
    Refused,
    decode_posted,
    encode_answer,
)

logger = logging.getLogger("papyra")

#: Requests that are carried out at one look; others of the writer's users wait meanwhile.
MAX_AT_ONCE = 16
#: Characters of an answer that says why not.
_LONGEST = 4_000


class InboxKeeper:
    """Looks into the inbox of one store, for its writer."""

    def __init__(
        self,
        store: Store,
        session: StoreSession,
        carry_out: Callable[[OperatorRequest], Awaitable[OperatorReply]],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._session = session
        self._carry_out = carry_out
        self._clock = clock
        self._is_failing = False

    async def attend(self) -> int | None:
        """Carry out what is posted; return how much that was, `None` where nothing can be seen.

        A store that fails here is logged once, and writing goes on as if there were no inbox.
        """
        if not isinstance(self._store, Inbox):
            return 0
        try:
            count = await self._attend(self._store)
        except PersistenceError as error:
            if not self._is_failing:
                logger.warning("requests for the writer can't be seen or answered: %s", error)
            self._is_failing = True
            return None
        self._is_failing = False
        return count

    async def _attend(self, inbox: Inbox) -> int:
        count = 0
        for request_id in (await self._session.attempt("read", inbox.posted))[:MAX_AT_ONCE]:
            data = await self._session.attempt("read", inbox.take, request_id)
            if data is None:
                continue  # withdrawn just now
            answer = encode_answer(await self._answer_to(data))
            await self._session.attempt("read", inbox.answer, request_id, answer)
            count += 1
        return count

    async def _answer_to(self, data: bytes) -> Answer:
        try:
            posted = decode_posted(data)
            if not self._clock() < posted.until:
                raise InvalidRequest("this request has come too late: nobody waits for it any more")
            answer = await self._carry_out(posted.request)
        except PersistenceError as error:
            logger.warning("refused what was asked of the writer: %s", error)
            return Refused(text_of(error)[:_LONGEST])
        logger.warning("carried out what was asked of the writer: %s", shown(posted.request))
        return answer
