"""Serve a model to any OpenAI client, with metrics.

MODEL is `tiny:llama` (built in), `hf:FOLDER` (a Hugging Face checkpoint), `gguf:FILE` (of llama.cpp) or a
plan file (`plan.toml` with the keys model, on, use). The address and a line to copy are printed when it is
ready; /ui is a page that shows what runs, /metrics is read by Prometheus, and with
OTEL_EXPORTER_OTLP_ENDPOINT set a span of each request is sent there. Ctrl-C or SIGTERM lets accepted
requests finish, a second one stops them; meanwhile new ones are answered 503, and /health too.
"""

from __future__ import annotations

import click

from lightwork.cli import _options
from lightwork.cli._plan_file import choose
from lightwork.cli._verbs import verb


@verb(
    "lightwork serve tiny:llama",
    "lightwork serve hf:./model --use 'Sarathi(chunk=256)' --use 'Ngram(k=4)'",
    "lightwork serve plan.toml --trace recorded",
)
@_options.model
@_options.use
@_options.on("cpu", "Where it runs: cpu, cuda:0, ray:.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one."
)
@click.option("--name", help="Model name that clients ask for; unset, MODEL itself.")
@click.option("--max-len", type=click.IntRange(2), help="Tokens of context; unset, what the model has.")
@click.option(
    "--kv-memory", type=_options.size, metavar="SIZE", help="Memory for KV blocks, e.g. 2GB; unset, derived."
)
@_options.tp
@_options.pp
@_options.depth
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0),
    default=25.0,
    show_default=True,
    metavar="SECONDS",
    help="How long accepted requests may go on after the first Ctrl-C or SIGTERM.",
)
@_options.trace
def command(
    model: str,
    use: tuple[str, ...],
    on: str | None,
    host: str,
    port: int,
    name: str | None,
    max_len: int | None,
    kv_memory: int | None,
    tp: int | None,
    pp: int | None,
    depth: int | None,
    drain_timeout: float,
    trace: str | None,
) -> None:
    from lightwork.cli._gauges import Serving
    from lightwork.cli._output import StatusLine
    from lightwork.serve.http.main import serve
    from lightwork.web.routes import add_page

    chosen = choose(model, on, use, "cpu")
    plan = chosen.plan(max_len=max_len, kv_bytes=kv_memory, tp=tp, pp=pp, depth=depth)
    with StatusLine() as status:
        serve(
            plan,
            host=host,
            port=port,
            name=name,
            drain_s=drain_timeout,
            trace=trace,
            observers=[Serving(status)] if status.shown else [],
            add_page=add_page,
        )
