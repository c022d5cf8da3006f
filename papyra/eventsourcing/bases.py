"""What a history begins with once its beginning was removed, read with the classes of today."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from papyra._safe_repr import text_of, type_and_text
from papyra.eventsourcing.snapshots import SnapshotPolicy, StateCodec, state_type_of
from papyra.exceptions import InvalidEvent, InvalidSchema
from papyra.persistence import codec
from papyra.persistence.bases import Base, InvalidBase, read_base
from papyra.persistence.records import PersistedEvent

StateT = TypeVar("StateT")


class BaseReader(Generic[StateT]):
    """Reads the states that the histories of one class of actors begin with."""

    def __init__(self, actor_class: type, policy: SnapshotPolicy | None) -> None:
        self._class = actor_class
        self._policy = policy

    def state_in(self, record: PersistedEvent) -> StateT:
        """Return the state that a base holds, upcast if it is of another version.

        It is never passed over: what it stands for is nowhere else. Raises `InvalidEvent`.
        """
        try:
            base = read_base(record)
        except InvalidBase as error:
            raise InvalidEvent(text_of(error)) from error
        if base is None:
            raise InvalidEvent("it is no base of a history")
        codec_of_state = self._codec()
        if self._policy is not None and base.version != self._policy.version:
            return self._upcast(base, codec_of_state)
        try:
            return codec_of_state.decode(base.state)
        except Exception as error:
            if self._policy is None or self._policy.upcast is None:
                raise self._refusal(base, f"it can't be read: {text_of(error)}") from error
            return self._upcast(base, codec_of_state)

    def _codec(self) -> StateCodec[StateT]:
        name, state_type = self._class.__name__, state_type_of(self._class)
        if state_type is Any or isinstance(state_type, TypeVar):
            raise InvalidSchema(
                f"its history begins with a state, and it is not known what that is: say what "
                f"{name}.initial_state returns"
            )
        return StateCodec(name, state_type)

    def _upcast(self, base: Base, codec_of_state: StateCodec[StateT]) -> StateT:
        policy = self._policy
        assert policy is not None
        if base.version > policy.version:
            raise self._refusal(base, f"it is newer than {policy.version}")
        if policy.upcast is None:
            raise self._refusal(base, f"this reads {policy.version}, and there is no upcast")
        try:
            state = policy.upcast(msgspec.json.decode(base.state), base.version)
            return codec_of_state.decode(msgspec.Raw(codec.encode_payload(state)))
        except Exception as error:
            why = f"upcast from it failed: {type_and_text(error)}"
            raise self._refusal(base, why) from error

    def _refusal(self, base: Base, why: str) -> InvalidEvent:
        return InvalidEvent(
            f"the history of this {self._class.__name__} begins with a state of version "
            f"{base.version}, and {why}. Give its SnapshotPolicy an upcast that reads it"
        )
