"""OpenTelemetry: a span for each request, sent by OTLP over HTTP where the usual variable says to.

It is one more observer of the trace. Spans are children of what a client's `traceparent` header names, carry
the semantic attributes of generative AI, and latencies under the names that vLLM gives them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from lightwork import __version__
from lightwork.runtime.clock import unix_ns
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span
from lightwork.serve.sequence import Sequence as Seq

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from starlette.types import ASGIApp, Receive, Scope, Send

HEADERS = (b"traceparent", b"tracestate")
log = logging.getLogger(__name__)
_caller: ContextVar[dict[str, str]] = ContextVar("caller")


class Traced:
    """ASGI middleware: remembers what trace a request is part of, for those who run in its context."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            told = {
                name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in HEADERS
            }
            _caller.set(told)
        await self.app(scope, receive, send)


class Telemetry:
    """An observer that makes spans. name: of the model that is served.

    On the kernel's thread; a thread of the SDK sends them, and drops them if nobody takes them.
    """

    def __init__(self, kernel: Kernel, provider: TracerProvider, name: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("lightwork", __version__)
        self._name = name
        self._began_ns = unix_ns() - int(kernel.now() * 1e9)
        self._open: dict[int, tuple[list[Seq], dict[str, str]]] = {}

    def took(self, seqs: Sequence[Seq], stop: Sequence[str] = ()) -> None:
        """A request came, whose sequences these are; told in its context."""
        asked = [*seqs], _caller.get({})
        self._open.update((seq.id, asked) for seq in seqs)

    def on(self, span: Span) -> None:
        asked = self._open.pop(int(span.name), None) if span.kind == "finish" else None
        if asked is not None and all(seq.finished is not None for seq in asked[0]):
            self._tell(*asked)

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()

    def _tell(self, seqs: Sequence[Seq], caller: dict[str, str]) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        span = self._tracer.start_span(
            "llm_request",
            context=TraceContextTextMapPropagator().extract(caller),
            kind=SpanKind.SERVER,
            attributes=attributes(seqs, self._name),
            start_time=self._at_ns(seqs[0].arrived_s),
        )
        if any(seq.finished == "error" for seq in seqs):
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._at_ns(max(_end_s(seq) for seq in seqs)))

    def _at_ns(self, at_s: float) -> int:
        return self._began_ns + int(at_s * 1e9)


def _end_s(seq: Seq) -> float:
    return seq.finished_s if seq.finished_s is not None else seq.arrived_s


def attributes(seqs: Sequence[Seq], name: str) -> dict[str, Any]:
    """What a span says of a request whose sequences these are. Latencies are seconds, of its first token."""
    request, how = seqs[0].request, seqs[0].request.sampling
    told: dict[str, Any] = {
        "gen_ai.provider.name": "lightwork",
        "gen_ai.request.model": request.model or name,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.choice.count": request.n,
        "gen_ai.request.seed": how.seed,
        "gen_ai.request.temperature": how.temperature,
        "gen_ai.request.top_p": how.top_p,
        "gen_ai.request.top_k": how.top_k,
        "gen_ai.request.frequency_penalty": how.frequency_penalty,
        "gen_ai.request.presence_penalty": how.presence_penalty,
        "gen_ai.response.finish_reasons": [str(seq.finished) for seq in seqs],
        "gen_ai.usage.input_tokens": seqs[0].prompt_len,
        "gen_ai.usage.output_tokens": sum(len(seq.tokens) - seq.prompt_len for seq in seqs),
        "gen_ai.usage.cache_read.input_tokens": seqs[0].cached,
        "gen_ai.latency.e2e": max(_end_s(seq) for seq in seqs) - seqs[0].arrived_s,
        "lightwork.num_preempted": sum(seq.num_preempted for seq in seqs),
        "lightwork.drafted_tokens": sum(seq.drafted for seq in seqs),
        "lightwork.accepted_tokens": sum(seq.accepted for seq in seqs),
    }
    first = min((seq for seq in seqs if seq.first_token_s is not None), key=_first_s, default=None)
    if first is not None and first.started_s is not None:
        told |= {
            "gen_ai.latency.time_in_queue": first.started_s - first.arrived_s,
            "gen_ai.latency.time_in_model_prefill": _first_s(first) - first.started_s,
            "gen_ai.latency.time_to_first_token": _first_s(first) - first.arrived_s,
            "gen_ai.latency.time_in_model_decode": _end_s(first) - _first_s(first),
        }
    return told


def _first_s(seq: Seq) -> float:
    assert seq.first_token_s is not None
    return seq.first_token_s


def telemetry(kernel: Kernel, name: str) -> Telemetry | None:
    """What sends spans, if OTEL_EXPORTER_OTLP_ENDPOINT (or that of traces alone) says where to."""
    if not (
        os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    ):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        log.warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set and no spans are sent: "
            'the extra "otel" is not installed (pip install "lightwork[otel]")'
        )
        return None
    about = {"service.name": "lightwork", "service.version": __version__}
    provider = TracerProvider(resource=Resource.create(about))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Telemetry(kernel, provider, name)
