"""What operators build on: buckets that stay, a dashboard whose every name exists, spans that are sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import httpx
import pytest

from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.http.metrics import Metrics
from lightwork.serve.loads.burst import Burst
from lightwork.serve.notes import Notes
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request, begin
from lightwork.serve.simulate import simulate

DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana.json"
SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120]
TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072]


@pytest.fixture(scope="module")
def exposed() -> str:
    """What /metrics says after a run."""
    metrics = Metrics()
    plan = Plan(model="shape:llama-3-8b", on="sim:a100", tp=1)
    for span in simulate(plan, Burst(num_requests=3)).trace.spans:
        metrics.on(span)
    return metrics.text(0, 0, 0.0).decode()


def test_buckets_are_frozen(exposed: str) -> None:
    """A bucket that moves breaks the quantiles of every dashboard."""
    edges: dict[str, list[str]] = {}
    for name, edge in re.findall(r'^lightwork_(\w+)_bucket\{le="([^"]+)"\}', exposed, re.MULTILINE):
        edges.setdefault(name, []).append(edge)
    tokens = {"request_prompt_tokens", "request_generation_tokens"}
    assert tokens < edges.keys()
    assert len(edges) == 8
    for name, found in edges.items():
        assert found.pop() == "+Inf"
        assert [float(edge) for edge in found] == (TOKENS if name in tokens else SECONDS), name


def test_labels_are_frozen(exposed: str) -> None:
    labels = set(re.findall(r"[{,](\w+)=", exposed))
    assert labels == {"le", "finished_reason", "running_lora_adapters", "waiting_lora_adapters"}
    assert 'lightwork_request_success_total{finished_reason="length"} 3.0' in exposed


def test_adapters_are_named_while_somebody_asks_for_them() -> None:
    """The label is what requests say, from their arrival to their end; a preempted one waits again."""
    metrics, kernel = Metrics(), Kernel(trace=Trace("simulated"))
    assert kernel.trace is not None
    kernel.trace.observers.append(metrics)
    notes = Notes(kernel, "engine")
    a, b, plain = (
        begin(Request(prompt=(1,), max_tokens=2, model=name), None, count(i), 0.0)[0]
        for i, name in enumerate(("law", "code", ""))
    )

    def named() -> list[str]:
        text = metrics.text(0, 0, 0.0).decode()
        (line,) = (line for line in text.splitlines() if line.startswith("lightwork_lora_requests_info"))
        return re.findall(r'="([^"]*)"', line)

    assert named() == ["", ""]
    for seq in (a, b, plain):
        notes.moment("arrive", seq, prompt=1, max_tokens=2, n=1)
    assert named() == ["", "code,law"]
    notes.moment("admit", a, known=1, cached=0)
    notes.moment("admit", plain, known=1, cached=0)
    assert named() == ["law", "code"]
    notes.moment("preempt", a)
    assert named() == ["", "code,law"]
    for seq in (a, b, plain):
        notes.moment("finish", seq, reason="length", output=1)
    assert named() == ["", ""]


def expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_every_name_of_the_dashboard_exists(exposed: str) -> None:
    names = {re.split(r"[{ ]", line)[0] for line in exposed.splitlines() if not line.startswith("#")}
    asked = {name for expr in expressions() for name in re.findall(r"lightwork_\w+", expr)}
    assert asked <= names
    families = set(re.findall(r"^# TYPE (\w+) (?:gauge|counter|histogram)$", exposed, re.MULTILINE))
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert {name for name in families if not name.endswith("_created")} == shown


@pytest.mark.parametrize("expr", expressions())
def test_expressions_are_whole(expr: str) -> None:
    for opening, closing in ("()", "[]", "{}"):
        assert expr.count(opening) == expr.count(closing)
    assert expr.count("$__rate_interval") == expr.count("rate(")
    labels = set(re.findall(r"by \((\w+)\)", expr)) | set(re.findall(r"[{,](\w+)=~", expr))
    assert labels <= {"le", "job", "finished_reason"}


# -- OpenTelemetry


class Collector(BaseHTTPRequestHandler):
    """Takes what OTLP exporters send."""

    got: ClassVar[list[Any]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        import gzip

        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        self.got.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Collector.got.clear()
    yield Collector.got
    server.shutdown()
    thread.join()
    server.server_close()


TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_span_for_each_request_reaches_a_collector(
    checkpoint: Callable[..., Path], collector: list[Any]
) -> None:
    """A child of what traceparent names, with the attributes of its request; none where the caller's trace is
    not sampled."""
    plan = Plan(model=str(checkpoint("llama")), max_len=64)
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 5, "seed": 3, "temperature": 0.5, "n": 2}
    with BackgroundServer(load(plan, name="tiny")) as url:
        for sampled in ("01", "00"):
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-{sampled}"}
            reply = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)
            assert reply.status_code == 200
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
    scopes = [scope for got in collector for r in got.resource_spans for scope in r.scope_spans]
    spans = [span for scope in scopes for span in scope.spans]
    assert len(spans) == 2
    child, alone = sorted(spans, key=lambda span: span.trace_id.hex() != TRACE)
    assert (child.name, child.trace_id.hex(), child.parent_span_id.hex()) == ("llm_request", TRACE, PARENT)
    assert alone.parent_span_id == b""
    told = {a.key: a.value for a in child.attributes}
    assert told["gen_ai.request.model"].string_value == "tiny"
    assert told["gen_ai.request.max_tokens"].int_value == 5
    assert told["gen_ai.request.temperature"].double_value == 0.5
    usage = reply.json()["usage"]
    assert told["gen_ai.usage.input_tokens"].int_value == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"].int_value == usage["completion_tokens"]
    assert len(told["gen_ai.response.finish_reasons"].array_value.values) == 2
    parts = ("time_in_queue", "time_in_model_prefill", "time_in_model_decode")
    latency = {name: told[f"gen_ai.latency.{name}"].double_value for name in (*parts, "e2e")}
    assert 0 < sum(latency[name] for name in parts) <= latency["e2e"] * (1 + 1e-9)
    lasted_s = (child.end_time_unix_nano - child.start_time_unix_nano) / 1e9
    assert lasted_s == pytest.approx(latency["e2e"], abs=1e-6)
    resource = {a.key: a.value.string_value for a in collector[0].resource_spans[0].resource.attributes}
    assert resource["service.name"] == "lightwork"


def test_nothing_is_sent_unless_a_variable_says_where(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    loaded = load(Plan(model=str(checkpoint("llama")), max_len=64), name="tiny")
    with BackgroundServer(loaded):
        assert loaded.service.takers == []
