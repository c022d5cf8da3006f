"""OpenTelemetry: spans for what actors do, trace context that travels with messages, and metrics.

Needs the extra ``otel``, which brings the API alone: the SDK, and what it exports to, is yours.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import Context as Variables
from contextvars import ContextVar, Token
from typing import Any, Literal, TypeAlias, TypeVar, cast

from papyra._safe_repr import shown, text_of
from papyra.actor import Failure
from papyra.address import ActorAddress
from papyra.exceptions import InvalidSetting, MissingExtra
from papyra.observability import semantics
from papyra.observability.instruments import instruments_of
from papyra.observability.semantics import named, type_of
from papyra.persistence.records import PersistedEvent
from papyra.telemetry import Operation

try:
    from opentelemetry import context as contexts
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise MissingExtra(
        f"traces need OpenTelemetry's API ({error}), which Papyra's extra 'otel' brings: "
        "pip install '.[otel]' in Papyra's checkout"
    ) from error

__all__ = ("OpenTelemetry", "context_of", "links_to")

ReplyT = TypeVar("ReplyT")
_Value: TypeAlias = str | int | float
#: Whether a span is recorded, here or where the trace has come from; `None` if there is no span.
_Trace: TypeAlias = Literal["recorded", "dropped"] | None

#: W3C's ``traceparent`` and ``tracestate``.
_PROPAGATOR = TraceContextTextMapPropagator()
#: Characters of a ``tracestate`` that are stored: W3C wants at least so many to be passed on.
_MAX_STATE = 512
#: Links of one span, at most: more of them an SDK drops by itself.
_MAX_LINKS = 128
#: Calls of a stack that are kept, the last ones.
_MAX_CALLS = 50


def context_of(record: PersistedEvent) -> Context:
    """Return the context of the span in which an event was stored; empty if there was none.

    For who reads events: ``tracer.start_span(..., context_of(record))`` goes on with that trace.
    """
    return _extracted(record.metadata)


def links_to(records: Iterable[PersistedEvent]) -> list[Link]:
    """Return links to the spans in which events were stored, each once, and no more than 128."""
    return _links(record.metadata for record in records)


class OpenTelemetry:
    """Records spans of one system: ``ActorSystem(telemetry=OpenTelemetry())``.

    A span is recorded where one is that it belongs to: an ask, and what follows of it, in that of
    the asker, its parent; a message that was told, a batch of a projection and a timer in traces of
    their own, with links to the spans in which it was told, stored and scheduled. Outside of any
    trace, an ask, a recovery, a timer and a batch begin one, if the sampler wants it; a message
    that is told there does not. In a trace that is not sampled, nothing is asked of the sampler.

    Names of actors, and of the types of messages and errors, get into spans, and so do the texts of
    errors; messages, events and states never do.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        """Take the providers of tracers and of meters, by default those set for the process.

        Raises `InvalidSetting` where OpenTelemetry keeps its context in no context variable.
        """
        if tracer_provider is not None and not isinstance(tracer_provider, trace.TracerProvider):
            raise InvalidSetting(
                f"tracer_provider is a TracerProvider, not {shown(tracer_provider)}"
            )
        if meter_provider is not None and not isinstance(meter_provider, MeterProvider):
            raise InvalidSetting(f"meter_provider is a MeterProvider, not {shown(meter_provider)}")
        self._meter_provider = meter_provider
        #: what is to be done when the system has stopped
        self._end_metrics: Callable[[], None] = lambda: None
        self._provider = tracer_provider
        self._tracer = trace.get_tracer("papyra", tracer_provider=tracer_provider)
        self._variable = _context_variable()
        self.variables: Sequence[ContextVar[Any]] = (self._variable,)
        #: whether spans are begun outside of traces
        self._begins = True
        #: the context that was looked into last, and what was found there: most messages have
        #: that of the one before
        self._seen: tuple[Context | None, _Trace] = None, None
        #: the context that was made last, for a span that is recorded
        self._made: Context | None = None

    def begin(self, system: Any) -> None:
        """Take note that a system has started: from now on the provider is as it stays."""
        instruments = instruments_of(self._meter_provider)
        instruments.add(system)
        self._end_metrics = functools.partial(instruments.end, system)
        self._begins = not _records_nothing(self._provider or trace.get_tracer_provider())

    def end(self) -> None:
        """Take note that it has stopped. What was recorded is the provider's to export."""
        self._seen, self._made = (None, None), None
        self._end_metrics()
        self._end_metrics = lambda: None

    # What is awaited

    def ask(
        self, actor: ActorAddress, message: object, asking: Coroutine[Any, Any, ReplyT]
    ) -> Coroutine[Any, Any, ReplyT]:
        """Observe an ask, as a child of the span that is current."""
        context = self._variable.get(None)
        if not self._is_to_begin(context):
            return asking
        return self._ask(actor, message, context, asking)

    async def _ask(
        self,
        actor: ActorAddress,
        message: object,
        context: Context | None,
        asking: Coroutine[Any, Any, ReplyT],
    ) -> ReplyT:
        kind = type_of(message)
        span = self._tracer.start_span(
            f"{semantics.ASK} {kind}",
            context,
            attributes={semantics.ACTOR_ADDRESS: _address(actor), semantics.MESSAGE_TYPE: kind},
        )
        return await self._within(span, context, asking, _note_error)

    def receive(
        self,
        actor: ActorAddress,
        actor_type: str,
        message: object,
        handling: Coroutine[Any, Any, ReplyT],
        *,
        is_asked: bool,
    ) -> Coroutine[Any, Any, ReplyT]:
        """Observe the handling of a message: as a child of the ask, or with a link to who told."""
        context = self._variable.get(None)
        if context is None or self._trace_in(context) != "recorded":
            return handling
        return self._receive(actor, actor_type, message, context, handling, is_asked=is_asked)

    async def _receive(
        self,
        actor: ActorAddress,
        actor_type: str,
        message: object,
        context: Context,
        handling: Coroutine[Any, Any, ReplyT],
        *,
        is_asked: bool,
    ) -> ReplyT:
        kind = type_of(message)
        attributes = {
            semantics.ACTOR_ADDRESS: _address(actor),
            semantics.ACTOR_TYPE: named(actor_type),
            semantics.MESSAGE_TYPE: kind,
        }
        name = f"{semantics.RECEIVE} {kind}"
        if is_asked:
            span = self._tracer.start_span(name, context, attributes=attributes)
        else:
            link = Link(trace.get_current_span(context).get_span_context())
            span = self._start_linked(name, context, attributes, [link])
        return await self._within(span, context, handling, _note_origin)

    async def recovery(
        self,
        actor: ActorAddress,
        ahead: tuple[Sequence[tuple[ContextVar[Any], Any]], bool] | None,
        recovering: Coroutine[Any, Any, int],
    ) -> int:
        """Observe a recovery, as that of the message at hand, or of the one that waits for it."""
        context, is_asked = self._variable.get(None), True
        if self._trace_in(context) is None and ahead is not None:
            values, is_asked = ahead
            context = next((value for each, value in values if each is self._variable), None)
        if not self._is_to_begin(context):
            return await recovering
        attributes = {semantics.ACTOR_ADDRESS: _address(actor)}
        if is_asked or self._trace_in(context) is None:
            span = self._tracer.start_span(semantics.RECOVERY, context, attributes=attributes)
        else:
            link = Link(trace.get_current_span(context).get_span_context())
            span = self._start_linked(semantics.RECOVERY, context, attributes, [link])

        async def recovered() -> int:
            revision = await recovering
            span.set_attribute(semantics.REVISION, revision)
            return revision

        return await self._within(span, context, recovered(), _note_origin)

    async def timer(
        self,
        actor: ActorAddress,
        name: str,
        late: float,
        cause: Mapping[str, str],
        firing: Coroutine[Any, Any, ReplyT],
    ) -> ReplyT:
        """Observe a timer, with a link to the span in which it was scheduled."""
        links = _links([cause])
        if not links and not self._begins:
            return await firing
        attributes: dict[str, _Value] = {
            semantics.ACTOR_ADDRESS: _address(actor),
            semantics.TIMER_NAME: named(name),
            semantics.TIMER_LATE: late,
        }
        context = self._variable.get(None)
        span = self._start_linked(semantics.TIMER, context, attributes, links)
        return await self._within(span, context, firing, _note_origin)

    async def projection(
        self,
        name: str,
        causes: Iterable[Mapping[str, str]],
        records: int,
        handling: Coroutine[Any, Any, ReplyT],
    ) -> ReplyT:
        """Observe a batch, with links to the spans in which its events were stored."""
        links = _links(causes)
        if not links and not self._begins:
            return await handling
        attributes: dict[str, _Value] = {
            semantics.PROJECTION_NAME: named(name),
            semantics.RECORDS: records,
        }
        context = self._variable.get(None)
        span = self._start_linked(
            f"{semantics.PROJECTION} {named(name)}", context, attributes, links
        )
        return await self._within(span, context, handling, _note_origin)

    # What is answered some time

    def persist(self, actor: ActorAddress, records: int) -> Operation | None:
        """Begin an append, as a child of the span that is current."""
        return self._begin(semantics.PERSIST, actor, semantics.RECORDS, records)

    def snapshot(self, actor: ActorAddress, revision: int) -> Operation | None:
        """Begin to save a snapshot, as a child of the span that is current."""
        return self._begin(semantics.SNAPSHOT, actor, semantics.REVISION, revision)

    def _begin(self, name: str, actor: ActorAddress, what: str, number: int) -> Operation | None:
        context = self._variable.get(None)
        if context is None or self._trace_in(context) != "recorded":
            return None
        attributes: dict[str, _Value] = {semantics.ACTOR_ADDRESS: _address(actor), what: number}
        span = self._tracer.start_span(name, context, attributes=attributes)
        return _SpanOperation(span)

    # The parts of these

    def _is_to_begin(self, context: Context | None) -> bool:
        """Return whether to ask for a span that may be the first of a trace."""
        found = self._trace_in(context)
        return self._begins if found is None else found == "recorded"

    def _trace_in(self, context: Context | None) -> _Trace:
        """Return what is known of the trace that a context is in; `None` outside of any."""
        if context is None:
            return None
        if context is self._made:
            return "recorded"
        seen, found = self._seen
        if seen is not context:
            found = _looked_into(context)
            self._seen = context, found
        return found

    def _start_linked(
        self,
        name: str,
        context: Context | None,
        attributes: Mapping[str, _Value],
        links: Sequence[Link],
    ) -> Span:
        """Start a trace of its own; what else is in the context, such as baggage, stays there."""
        return self._tracer.start_span(
            name,
            trace.set_span_in_context(trace.INVALID_SPAN, context),
            SpanKind.CONSUMER,
            attributes,
            links,
        )

    async def _within(
        self,
        span: Span,
        context: Context | None,
        work: Coroutine[Any, Any, ReplyT],
        note: Callable[[Span, BaseException], None],
    ) -> ReplyT:
        """Await `work` with `span` current, which ends with it."""
        within = trace.set_span_in_context(span, context)
        if span.is_recording():
            self._made = within
        token = self._variable.set(within)
        try:
            reply = await work
            if type(reply) is Failure:
                _note_error(span, cast("Failure", reply).error)
        except BaseException as error:
            note(span, error)
            raise
        finally:
            _reset(self._variable, token)
            span.end()
        return reply


class _SpanOperation:
    """An operation whose span is not current meanwhile, as nothing of users' runs in it."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def metadata(self) -> Mapping[str, str]:
        """The span's context, as W3C has it written; nothing if the span is not recorded."""
        carrier: dict[str, str] = {}
        if self._span.get_span_context().trace_flags.sampled:
            _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span, Context()))
            if len(carrier.get("tracestate", "")) > _MAX_STATE:
                del carrier["tracestate"]
        return carrier

    def end(self, error: BaseException | None = None) -> None:
        """End the span."""
        if error is not None:
            _note_error(self._span, error)
        self._span.end()


def _context_variable() -> ContextVar[Any]:
    """Return the variable that OpenTelemetry keeps its context in."""
    # Which one that is, is nobody's business but its own: so it is asked to set it.
    variables, mark = Variables(), Context()
    variables.run(contexts.attach, mark)
    for variable, value in variables.items():
        if value is mark:
            return variable
    raise InvalidSetting(
        "OpenTelemetry keeps its context in no context variable here: unset OTEL_PYTHON_CONTEXT"
    )


def _records_nothing(provider: trace.TracerProvider) -> bool:
    """Return whether a provider is known to record no trace that begins here.

    So it need not be asked each time, which takes longer than many an actor's message.
    """
    if isinstance(provider, (trace.NoOpTracerProvider, trace.ProxyTracerProvider)):
        return True
    # The SDK's. A sampler says what it is, in words that OpenTelemetry's specification gives.
    describe = getattr(getattr(provider, "sampler", None), "get_description", None)
    description = str(describe()) if callable(describe) else ""
    return description.startswith(("AlwaysOffSampler", "ParentBased{root:AlwaysOffSampler"))


def _looked_into(context: Context) -> _Trace:
    span = trace.get_current_span(context)
    span_context = span.get_span_context()
    if not span_context.is_valid:
        return None
    is_recorded = span_context.trace_flags.sampled or span.is_recording()
    return "recorded" if is_recorded else "dropped"


def _links(causes: Iterable[Mapping[str, str]]) -> list[Link]:
    """Return links to the spans that metadata tells of, if these were recorded."""
    found: dict[str, SpanContext] = {}
    for cause in causes:
        parent = cause.get("traceparent")
        if parent is None or parent in found:
            continue
        span_context = trace.get_current_span(_extracted(cause)).get_span_context()
        if span_context.is_valid and span_context.trace_flags.sampled:
            found[parent] = span_context
            if len(found) == _MAX_LINKS:
                break
    return [Link(each) for each in found.values()]


def _extracted(metadata: Mapping[str, str]) -> Context:
    return _PROPAGATOR.extract(metadata, Context())


def _address(actor: ActorAddress) -> str:
    return named(str(actor))


def _reset(variable: ContextVar[Any], token: Token[Any]) -> None:
    # What is given up, and thrown away by somebody else, is closed in the context of that one.
    with contextlib.suppress(ValueError):
        variable.reset(token)


def _note_error(span: Span, error: BaseException, stacktrace: str = "") -> None:
    """Note the error that something has ended with; a cancellation in short, as it is none."""
    if not span.is_recording():
        return
    kind = type_of(error)
    span.set_attribute(semantics.ERROR_TYPE, kind)
    if not isinstance(error, Exception):
        return
    message = text_of(error)
    attributes = {semantics.EXCEPTION_TYPE: kind, semantics.EXCEPTION_MESSAGE: message}
    if stacktrace:
        attributes[semantics.EXCEPTION_STACKTRACE] = stacktrace
    span.add_event(semantics.EXCEPTION, attributes)
    span.set_status(Status(StatusCode.ERROR, f"{kind}: {message}"))


def _note_origin(span: Span, error: BaseException) -> None:
    """Note an error where it comes from, with the calls that have led to it."""
    calls = traceback.extract_tb(error.__traceback__, limit=-_MAX_CALLS)
    _note_error(span, error, "".join(traceback.format_list(calls)))
