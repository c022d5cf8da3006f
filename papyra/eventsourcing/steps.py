"""Stored events decoded right into today's classes, which takes a third of the time.

Otherwise a payload is decoded into plain data first, and that is converted. Here this is done only
with events of which the outcome may be another, and with those that an upcaster may have to do
with. So a `Decimal` that is made of JSON at once can tell a ``1e2`` from a ``100.0``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

import msgspec
from msgspec import inspect

from papyra.persistence import codec
from papyra.persistence.messages import EncodedRun

#: What both ways make the same value of, whatever JSON it is.
_ALIKE = (
    *(inspect.AnyType, inspect.NoneType, inspect.BoolType, inspect.IntType, inspect.FloatType),
    *(inspect.StrType, inspect.BytesType, inspect.UUIDType, inspect.EnumType, inspect.LiteralType),
    *(inspect.DateTimeType, inspect.DateType, inspect.TimeType, inspect.TimeDeltaType),
)
#: What they do that with if they do so with what is in it.
_MADE_OF_OTHERS = (
    *(inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType),
    *(inspect.TupleType, inspect.UnionType, inspect.StructType, inspect.DataclassType),
    inspect.Metadata,
)


class Step(Protocol):
    """A stored event, as far as a recovery is concerned with it."""

    @property
    def event_type(self) -> str:
        """The name under which it is stored."""

    @property
    def event_version(self) -> int:
        """The version of that."""

    @property
    def revision(self) -> int | None:
        """The position in the history."""

    @property
    def payload(self) -> Any:
        """The event itself, or plain data."""

    @property
    def metadata(self) -> Mapping[str, str] | None:
        """What is said about it beside that, if anything is."""


class _Step(msgspec.Struct, gc=False):
    """What is decoded of a record; a subclass for each type of event says what the payload is."""

    kind: Literal["event"]
    revision: int

    #: whether the payload is the event already
    is_event: ClassVar[bool]
    event_type: ClassVar[str]


class _StepOfSomebody(_Step, gc=False):
    """One of which it is to be seen whose it is."""

    actor_address: str


_StepT = TypeVar("_StepT", bound=_Step)


class StepDecoder:
    """Decodes runs of one actor's records."""

    def __init__(
        self,
        classes: Mapping[str, tuple[type, int]],
        upcast: Collection[str],
        notes: Collection[str] = (),
        marks: Sequence[str] = (),
    ) -> None:
        """Take the classes of events and versions by name, and the names of upcasters.

        And those of notes, and of the metadata that somebody wants to see.
        """
        self._classes = classes
        self._upcast = upcast
        self._notes = notes
        self._marks = marks
        #: the types of steps of runs in which there are notes, or such metadata
        self.holding_marks: frozenset[type] = frozenset()
        self._decoders: dict[tuple[type, bool], Callable[[bytes], list[Any]]] = {}
        #: the types of steps whose payload is the event already
        self.holding_events: frozenset[type] = frozenset()

    def decode(
        self, run: EncodedRun, actor: str, after: int, *, is_own: bool
    ) -> Sequence[Step] | None:
        """Return the events with the revisions that follow `after`.

        Return `None` if it is anything else than those of that actor, of types and versions that
        are known: then it has to be found out what it is, in another way.
        """
        # Most runs have neither notes nor marks, and to look for them takes its time. So they are
        # decoded into types that have no place for them, and again if that fails.
        steps = self._decode(run, actor, is_marked=False, is_own=is_own)
        if steps is None:
            steps = self._decode(run, actor, is_marked=True, is_own=is_own)
        if steps is None or [step.revision for step in steps] != list(
            range(after + 1, after + run.count + 1)
        ):
            return None
        return cast("Sequence[Step]", steps)

    def _decode(
        self, run: EncodedRun, actor: str, *, is_marked: bool, is_own: bool
    ) -> Sequence[_Step] | None:
        steps: Sequence[_Step]
        try:
            if is_own:
                steps = codec.decode_run(run.data, self._lines(_Step, is_marked))
            else:
                steps = somebodys = codec.decode_run(
                    run.data, self._lines(_StepOfSomebody, is_marked)
                )
                if [step.actor_address for step in somebodys].count(actor) != run.count:
                    return None
        except Exception:  # noqa: BLE001 - users' classes may raise anything when they are made
            return None
        return steps

    def _lines(self, base: type[_StepT], is_marked: bool) -> Callable[[bytes], list[_StepT]]:
        """Return what decodes a run, which is made the first time."""
        found = self._decoders.get((base, is_marked))
        if found is None:
            found = self._decoders[base, is_marked] = self._decoder(base, is_marked)
        return found

    def _decoder(self, base: type[_StepT], is_marked: bool) -> Callable[[bytes], list[_StepT]]:
        metadata: Any = dict[str, str] if is_marked else _without(self._marks)
        more = [("metadata", metadata | None, None)]
        kinds = [
            _kind_of(base, name, event_class, version, more)
            if name not in self._upcast and decodes_alike(event_class)
            else _plain_kind_of(base, name, more)
            for name, (event_class, version) in self._classes.items()
        ]
        others = {*self._upcast, *(self._notes if is_marked else ())} - self._classes.keys()
        kinds += [_plain_kind_of(base, name, more) for name in sorted(others)]
        self.holding_events |= {kind for kind in kinds if kind.is_event}
        self.holding_marks |= {*kinds} if is_marked else frozenset()
        return msgspec.json.Decoder(functools.reduce(operator.or_, kinds)).decode_lines


def _without(marks: Sequence[str]) -> Any:
    """Return the type of metadata in which none of these names is: with one, decoding fails."""
    fields = [(f"mark_{number}", Literal[0], 0) for number in range(len(marks))]
    names = {name: mark for (name, _, _), mark in zip(fields, marks, strict=True)}
    return msgspec.defstruct("Metadata", fields, rename=names, gc=False)


def _kind_of(
    base: type[_StepT], name: str, event_class: type, version: int, more: Sequence[Any]
) -> type[_StepT]:
    """Return the type of steps with events of a class, of this version and no other."""
    only: Any = Literal[version]
    versions = ("event_version", only, version) if version == 1 else ("event_version", only)
    return _defined(base, name, [("payload", event_class), versions, *more], is_event=True)


def _plain_kind_of(base: type[_StepT], name: str, more: Sequence[Any]) -> type[_StepT]:
    """Return the type of steps with events of a name, the payload of which is plain data."""
    fields = [("payload", Any), ("event_version", int, 1), *more]
    return _defined(base, name, fields, is_event=False)


def _defined(
    base: type[_StepT], name: str, fields: Sequence[Any], *, is_event: bool
) -> type[_StepT]:
    namespace = {"is_event": is_event, "event_type": name}
    defined = msgspec.defstruct(
        "Step",
        fields,
        bases=(base,),
        namespace=namespace,
        tag_field="event_type",
        tag=name,
        gc=False,
    )
    return cast("type[_StepT]", defined)


def decodes_alike(event_class: type) -> bool:
    """Return whether JSON that is decoded right into a class is what plain data converts to."""
    for each in parts_of(inspect.type_info(event_class)):
        if isinstance(each, inspect.DictType):
            if not isinstance(each.key_type, (inspect.StrType, inspect.AnyType)):
                return False
        elif isinstance(each, inspect.Type) and not isinstance(each, (*_ALIKE, *_MADE_OF_OTHERS)):
            return False
    return True


def parts_of(kind: inspect.Type) -> Iterator[object]:
    """Yield a type, and all that it is made of, each once; among it lists of such types."""
    seen: set[int] = set()
    ahead: list[object] = [kind]
    while ahead:
        each = ahead.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, (tuple, list)):
            ahead += each
        elif isinstance(each, inspect.Field):
            ahead.append(each.type)
        elif isinstance(each, msgspec.Struct) and type(each).__module__ == "msgspec.inspect":
            ahead += [getattr(each, name) for name in each.__struct_fields__ if name != "cls"]
