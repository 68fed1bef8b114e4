"""Prometheus metrics, an observer of the trace.

Suffixes are vLLM's, so its dashboards need only the prefix.
"""

from __future__ import annotations

from math import nan
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lightwork.runtime.trace import Span
from lightwork.serve.metrics import RequestTimes, trained_tokens

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
TOKENS = tuple(2.0**i for i in range(18))


class Metrics:
    """Counts what spans say. Called on the kernel's thread; the values may be read from any."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._times: dict[str, RequestTimes] = {}
        self._models: dict[str, tuple[str, bool]] = {}  # of a sequence, and whether it runs
        g, c, h = self._gauge, self._counter, self._histogram
        self.running = g("num_requests_running", "Sequences in the running batch")
        self.waiting = g("num_requests_waiting", "Sequences in the queue")
        self.kv_usage = g("kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1")
        self.prompt_tokens = c("prompt_tokens", "Prompt tokens computed")
        self.generation_tokens = c("generation_tokens", "Output tokens")
        self.embedded = c("embedded_texts", "Texts embedded")
        self.prefix_queries = c("prefix_cache_queries", "Prompt tokens looked up in the prefix cache")
        self.prefix_hits = c("prefix_cache_hits", "Prompt tokens found there")
        self.preemptions = c("num_preemptions", "Sequences preempted")
        self.drafted = c("spec_decode_num_draft_tokens", "Tokens drafted")
        self.accepted = c("spec_decode_num_accepted_tokens", "Drafted tokens that stood")
        self.training_tokens = c("training_tokens", "Tokens trained on, through all layers and back")
        self.training_loss = g("training_loss", "Of the last update; NaN before")
        self.training_loss.set(nan)
        self.lora = Gauge(
            "lightwork_lora_requests_info",
            "Adapters, or models other than the first, of sequences that run and of those that wait",
            ["running_lora_adapters", "waiting_lora_adapters"],
            registry=self.registry,
        )
        self.success = Counter(
            "lightwork_request_success",
            "Sequences finished, by reason",
            ["finished_reason"],
            registry=self.registry,
        )
        self.ttft = h("time_to_first_token_seconds", "Arrival to first token", SECONDS)
        self.itl = h("inter_token_latency_seconds", "Between two tokens of a sequence", SECONDS)
        self.e2e = h("e2e_request_latency_seconds", "Arrival to end", SECONDS)
        self.queue = h("request_queue_time_seconds", "Arrival to first step", SECONDS)
        self.prefill = h("request_prefill_time_seconds", "First step to first token", SECONDS)
        self.decode = h("request_decode_time_seconds", "First token to end", SECONDS)
        self.prompt_len = h("request_prompt_tokens", "Prompt length", TOKENS)
        self.output_len = h("request_generation_tokens", "Output length", TOKENS)

    def _gauge(self, name: str, words: str) -> Gauge:
        return Gauge(f"lightwork_{name}", words, registry=self.registry)

    def _counter(self, name: str, words: str) -> Counter:
        return Counter(f"lightwork_{name}", words, registry=self.registry)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"lightwork_{name}", words, buckets=buckets, registry=self.registry)

    def text(self, running: int, waiting: int, kv_usage: float) -> bytes:
        """The exposition, with the gauges as the engine has them now."""
        self.running.set(running)
        self.waiting.set(waiting)
        self.kv_usage.set(kv_usage)
        asked = [*self._models.values()]
        names = (",".join(sorted({name for name, runs in asked if runs is those})) for those in (True, False))
        self.lora.clear()
        self.lora.labels(*names).set(1)
        return generate_latest(self.registry)

    def on(self, span: Span) -> None:
        """Take in one span; kinds nobody counts are passed over."""
        handle = getattr(self, f"_on_{span.kind}", None)
        if handle is not None:
            handle(span, span.args or {})

    def _on_arrive(self, span: Span, args: dict[str, int]) -> None:
        self._times[span.name] = RequestTimes(span.start_s, args["prompt"])
        self.prompt_len.observe(args["prompt"])
        self._asked_of(span, args, runs=False)

    def _on_admit(self, span: Span, args: dict[str, int]) -> None:
        self.prefix_queries.inc(args["known"])
        self.prefix_hits.inc(args["cached"])
        self._asked_of(span, args, runs=True)

    def _on_embed(self, span: Span, args: dict[str, int]) -> None:
        self.prompt_tokens.inc(args["tokens"])
        self.embedded.inc(args["texts"])

    def _on_update(self, span: Span, args: dict[str, float]) -> None:
        self.training_loss.set(args["loss"])

    def _on_preempt(self, span: Span, args: dict[str, int]) -> None:
        self.preemptions.inc()
        self._asked_of(span, args, runs=False)

    def _asked_of(self, span: Span, args: dict[str, Any], *, runs: bool) -> None:
        if "model" in args:
            self._models[span.name] = args["model"], runs

    def _on_step(self, span: Span, args: dict[str, list[tuple[int, int, int, int, int]]]) -> None:
        self.training_tokens.inc(trained_tokens(span))
        for seq_id, start, count, drafted, emitted in args["chunks"]:
            times = self._times.get(str(seq_id))
            self.generation_tokens.inc(emitted)
            if drafted:
                self.drafted.inc(drafted)
                self.accepted.inc(max(0, emitted - 1))
            if times is None:
                continue
            self.prompt_tokens.inc(max(0, min(start + count, times.prompt_len) - start))
            self._token_times(times, span, emitted)

    def _token_times(self, times: RequestTimes, span: Span, emitted: int) -> None:
        if times.started_s is None:
            times.started_s = span.start_s
            self.queue.observe(span.start_s - times.arrived_s)
        if not emitted:
            return
        if times.tokens_s:
            self.itl.observe(span.end_s - times.tokens_s[-1])
        else:
            self.ttft.observe(span.end_s - times.arrived_s)
            self.prefill.observe(span.end_s - times.started_s)
        times.tokens_s[1:] = [span.end_s]

    def _on_finish(self, span: Span, args: dict[str, str | int]) -> None:
        self.success.labels(finished_reason=args["reason"]).inc()
        self.output_len.observe(int(args["output"]))
        self._models.pop(span.name, None)
        times = self._times.pop(span.name, None)
        if times is None:
            return
        self.e2e.observe(span.end_s - times.arrived_s)
        if times.tokens_s:
            self.decode.observe(span.end_s - times.tokens_s[0])
