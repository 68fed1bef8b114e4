"""Start a server: load, report, listen, drain."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import uvicorn

from lightwork.errors import SpecError, UsageError
from lightwork.models.pooling import read_dimensions, read_pooling
from lightwork.runtime.clock import WallClock, unix_s
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.perfetto import write_chrome_trace
from lightwork.runtime.progress import Progress, ProgressBar, say
from lightwork.runtime.trace import Observer, Span, Trace
from lightwork.serve.compositions import Composition
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.http.app import create_app
from lightwork.serve.http.draining import DRAIN_S, DrainingServer
from lightwork.serve.http.metrics import Metrics
from lightwork.serve.http.telemetry import Traced, telemetry
from lightwork.serve.http.translate import Served, to_itself
from lightwork.serve.opening import AnyModel, import_backend, open_engine
from lightwork.serve.plan import Plan, Setting
from lightwork.serve.run_folder import Recorder, new_folder, trace_place
from lightwork.serve.schedulers.context_switch import ranks
from lightwork.serve.service import Service, Taker

if TYPE_CHECKING:
    from fastapi import FastAPI

KEPT_SPANS = 100_000


@dataclass(slots=True, kw_only=True)
class Loaded:
    """A running service and the app over it. phases: (name, seconds) of its start."""

    service: Service
    model: AnyModel
    app: FastAPI
    name: str
    trace: Trace
    settings: list[Setting]
    phases: list[tuple[str, float]]
    nbytes: int

    def close(self) -> None:
        """Stop serving, then what computes; then what was told of it is whole."""
        self.service.close()
        self.model.close()
        for taker in self.service.takers:
            taker.close()

    def started(self) -> str:
        """The start in one line: total, phases, the slowest first."""
        total = sum(seconds for _, seconds in self.phases)
        parts = ", ".join(f"{name} {s:.1f}" for name, s in sorted(self.phases, key=lambda p: -p[1]))
        return f"ready in {total:.1f} s ({parts}; {self.nbytes / 1e6:.1f} MB)"


def load(
    plan: Plan,
    *,
    name: str | None = None,
    api_key: str | None = None,
    progress: Progress | None = None,
    keep_spans: int | None = KEPT_SPANS,
    observers: Sequence[Observer] = (),
    record: Path | None = None,
    opener: Callable[..., tuple[Engine | Fleet, AnyModel, list[Setting]]] = open_engine,
) -> Loaded:
    """Load a plan's model, start its engine, and make the app. record: a run folder to write. opener: what
    makes of plan, kernel and progress what `open_engine` does.

    Raises CheckpointError, SpecError.
    """
    if record is not None:
        new_folder(record)  # before anything slow
    clock = WallClock()
    import_backend(plan.on)
    imported_s = clock.now()
    metrics = Metrics()
    trace = Trace(f"real: {plan.on}", keep=keep_spans, observers=[metrics, *observers])
    kernel = Kernel(WallClock(), trace=trace)
    engine, model, settings = opener(plan, kernel, progress)
    read_s = clock.now() - imported_s
    model.warm_up()
    warm_s = clock.now() - imported_s - read_s
    with _closing_if_refused(model):
        served = _served(plan, engine, model, name or plan.model)
    takers: list[Taker] = [Recorder(record, engine, trace)] if record is not None else []
    if (spans := telemetry(kernel, served.name)) is not None:
        takers.append(spans)
        trace.observers.append(spans)
    service = Service(kernel, engine, model.tokenizer, takers)
    app = create_app(service, served, metrics, created=unix_s(), api_key=api_key)
    if spans is not None:
        app.add_middleware(Traced)
    return Loaded(
        service=service,
        model=model,
        app=app,
        name=served.name,
        trace=trace,
        settings=settings,
        phases=[("import", imported_s), ("read", read_s), ("warm up", warm_s)],
        nbytes=model.nbytes,
    )


@contextmanager
def _closing_if_refused(model: AnyModel) -> Iterator[None]:
    try:
        yield
    except BaseException:
        model.close()
        raise


def _served(plan: Plan, engine: Engine | Fleet, model: AnyModel, name: str) -> Served:
    """What requests are translated for. Raises SpecError for a name that a variant has, CheckpointError for a
    pooling that is not done, or dimensions that are none."""
    chosen = plan.techniques()
    composition: Composition | None = chosen.get("composition")
    tuning = chosen.get("tuning")
    if name in model.variants or (tuning is not None and name == tuning.name):
        raise SpecError(
            f"the model and one of its variants are both called {name!r}",
            expected="names of their own",
            fix="--name another",
        )
    pooling = read_pooling(plan.model)
    return Served(
        name=name,
        tokenizer=model.tokenizer,
        limits=engine.limits,
        vocab_size=model.spec.vocab_size,
        kv_tokens=engine.kv_tokens,
        defaults=model.generation,
        variants=model.variants,
        route=composition.router() if composition is not None else to_itself,
        pooling=pooling,
        dimensions=read_dimensions(plan.model, model.spec.hidden_size * len(pooling.modes)),
        ranked=ranks(chosen.get("scheduler")),
    )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises UsageError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}",
            expected="a free port of this machine",
            fix="--port 0 takes any free one",
        ) from error
    return listener


def _server(app: FastAPI, service: Service, drain_s: float = DRAIN_S) -> DrainingServer:
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=30, lifespan="off")
    return DrainingServer(config, service, drain_s)


def serve(
    plan: Plan,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_key: str | None = None,
    drain_s: float = DRAIN_S,
    trace: str | None = None,
    observers: Sequence[Observer] = (),
    add_page: Callable[[Loaded], None] | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM, then finish what was accepted, for at most drain_s seconds.

    trace: write the run there, as a Chrome trace if that is a .json file, else as a run folder. add_page:
    puts a page for people on the app, at /ui.
    """
    plan.techniques()
    file, folder = trace_place(trace)
    listener = listen(host, port)
    try:
        with ProgressBar() as bar:
            keep, told = None if trace else KEPT_SPANS, [_Epochs(), *observers]
            loaded = load(
                plan,
                name=name,
                api_key=api_key,
                progress=bar,
                keep_spans=keep,
                observers=told,
                record=folder,
            )
    except BaseException:
        listener.close()
        raise
    if add_page is not None:
        add_page(loaded)
    listener.listen()  # who reads the address may use it
    _announce(loaded, listener, host, paged=add_page is not None)
    try:
        with suppress(KeyboardInterrupt):
            _server(loaded.app, loaded.service, drain_s).run(sockets=[listener])
    finally:
        loaded.close()
        listener.close()
        if file is not None:
            write_chrome_trace(file, [loaded.trace])


def _announce(loaded: Loaded, listener: socket.socket, host: str, *, paged: bool) -> None:
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}"
    say = sys.stderr
    width = max([10, *(len(setting.name) for setting in loaded.settings)])
    for setting in loaded.settings:
        print(f"  {setting.name:<{width}} {setting.value:<24} {setting.reason}", file=say)
    page = f"   page {url}/ui" if paged else ""
    print(f"  {url}/v1{page}   {loaded.started()}   docs {url}/docs", file=say)
    message = '{"model": "' + loaded.name + '", "messages": [{"role": "user", "content": "Hello"}]}'
    print(
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{message}'",
        file=say,
        flush=True,
    )


class _Epochs:
    """Tells of each epoch that has been trained, and how training ended, on stderr: an observer."""

    def on(self, span: Span) -> None:
        if span.kind == "keep adapter" and span.args:
            told = "  kept after update {0}   loss {loss:.4g}   {tokens:,} tokens in all"
            say(told.format(span.name, **span.args))
        if span.kind == "serve adapter" and span.args:
            told = "  trained {0}   loss {loss:.4g}   {tokens:,} tokens   {share:.0%} of the time"
            say(told.format(span.name, **span.args))


class BackgroundServer:
    """A server on a thread of this process: `with BackgroundServer(load(plan)) as url`.

    Ends with the block.
    """

    def __init__(self, loaded: Loaded, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.loaded = loaded
        self._listener = listen(host, port)
        self._server = _server(loaded.app, loaded.service)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="lightwork-http", daemon=True
        )
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"

    def __enter__(self) -> str:
        self._thread.start()
        self._server.up.wait()
        return self.url

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()
        self.loaded.close()
