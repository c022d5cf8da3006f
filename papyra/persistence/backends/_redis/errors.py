"""The translation of Redis errors: which `StoreError` an answer or a failure is."""

from __future__ import annotations

import re

import redis.exceptions

from papyra.exceptions import (
    StoreAccessDenied,
    StoreError,
    StoreFull,
    StoreNotReady,
    StoreNotWritable,
    StoreUnreachable,
    StoreWrongType,
)

__all__ = ("is_refusal", "store_error")

#: What a server answers, by the first word of its error; also where a script passes it on.
_CODES: dict[str, type[StoreError]] = {
    "OOM": StoreFull,
    "READONLY": StoreNotWritable,
    "MISCONF": StoreNotWritable,
    "NOREPLICAS": StoreNotWritable,
    "NOAUTH": StoreAccessDenied,
    "WRONGPASS": StoreAccessDenied,
    "NOPERM": StoreAccessDenied,
    "WRONGTYPE": StoreWrongType,
    "LOADING": StoreNotReady,
    "BUSY": StoreNotReady,
    "TRYAGAIN": StoreNotReady,
    "CLUSTERDOWN": StoreNotReady,
    "MASTERDOWN": StoreNotReady,
}
_CODE = re.compile(rf"(?:^|[\s\-])({'|'.join(_CODES)})\b")
#: What a script passes on in words: of Redis before and from version 7 on.
_ACL_FAILURE = re.compile(r"ACL failure|can't run this command|can't access")

#: What redis-py raises, where the class says it; what it raises for other answers has their text.
_CLASSES: tuple[tuple[type[BaseException], type[StoreError]], ...] = (
    (redis.exceptions.OutOfMemoryError, StoreFull),
    (redis.exceptions.ReadOnlyError, StoreNotWritable),
    (redis.exceptions.AuthenticationError, StoreAccessDenied),
    (redis.exceptions.AuthorizationError, StoreAccessDenied),
    (redis.exceptions.NoPermissionError, StoreAccessDenied),
    (redis.exceptions.BusyLoadingError, StoreNotReady),
    (redis.exceptions.ClusterDownError, StoreNotReady),
    (redis.exceptions.TryAgainError, StoreNotReady),
    (redis.exceptions.MovedError, StoreNotReady),
    (redis.exceptions.SlotNotCoveredError, StoreNotReady),
    # Sent from node to node until redis-py gave up, as while a slot moves: nobody has done it.
    (redis.exceptions.ClusterError, StoreNotReady),
    (redis.exceptions.RedisClusterException, StoreUnreachable),
    (redis.exceptions.ConnectionError, StoreUnreachable),
    (redis.exceptions.TimeoutError, StoreUnreachable),
    (OSError, StoreUnreachable),
    (TimeoutError, StoreUnreachable),
    (EOFError, StoreUnreachable),
)


def store_error(error: Exception, location: str) -> StoreError | None:
    """Translate an error of redis-py; `None` for one that is a mistake of ours."""
    if isinstance(error, StoreError):
        return error
    for raised, meant in _CLASSES:
        if isinstance(error, raised):
            return meant(f"{location}: {_message(error)}")
    if isinstance(error, redis.exceptions.RedisError):
        found, meant = _CODE.search(str(error)), StoreError
        if found is not None:
            meant = _CODES[found[1]]
        elif _ACL_FAILURE.search(str(error)):
            meant = StoreAccessDenied
        return meant(f"{location}: {_message(error)}")
    return None


def is_refusal(error: BaseException) -> bool:
    """Return whether an error is the server's word that it has not executed a command."""
    meant = store_error(error, "") if isinstance(error, Exception) else None
    return type(meant) in {
        StoreFull,
        StoreNotWritable,
        StoreAccessDenied,
        StoreWrongType,
        StoreNotReady,
    }


def _message(error: Exception) -> str:
    text = str(error) or "no answer in time"
    code = getattr(error, "status_code", None)
    return f"{code} {text}" if isinstance(code, str) and code not in text else text
