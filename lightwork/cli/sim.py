"""Predict how a model would be served on machines you may not have.

MODEL is what `serve` takes, or `shape:llama-3-70b` for a well-known model without its weights. The
techniques are the files that `serve` runs; time is virtual, and every figure is labelled simulated.
"""

from __future__ import annotations

from lightwork.cli import _options
from lightwork.cli._plan_file import choose
from lightwork.cli._verbs import verb

HIDDEN = ("simulated", "num_within_slo")  # said above the table, and nothing is promised here


@verb(
    "lightwork sim tiny:llama --on sim:a100x8",
    "lightwork sim shape:llama-3-70b --on sim:h100x8 --load 'Poisson(rate=4)' --trace out.json",
)
@_options.model
@_options.use
@_options.on("sim:a100x8", "The simulated place: sim: and a preset, times how many.")
@_options.tp
@_options.pp
@_options.depth
@_options.load("Poisson(rate=4)")
@_options.seed
@_options.trace
@_options.as_json
def command(
    model: str,
    use: tuple[str, ...],
    on: str | None,
    tp: int | None,
    pp: int | None,
    depth: int | None,
    load: str,
    seed: int,
    trace: str | None,
    as_json: bool,
) -> None:
    from lightwork.cli._output import show_json, show_table
    from lightwork.runtime.perfetto import write_chrome_trace
    from lightwork.runtime.progress import ProgressBar
    from lightwork.serve.loads import parse_load
    from lightwork.serve.run_folder import trace_place
    from lightwork.serve.simulate import simulate

    chosen = choose(model, on, use, "sim:a100x8")
    plan, arriving = chosen.plan(tp=tp, pp=pp, depth=depth), parse_load(load)
    file, folder = trace_place(trace)
    with ProgressBar() as bar:
        run = simulate(plan, arriving, seed=seed, keep_spans=trace is not None, progress=bar, record=folder)
    if file is not None:
        write_chrome_trace(file, [run.trace])
    figures = run.summary.to_dict()
    if as_json:
        show_json({"place": chosen.on, "settings": [s._asdict() for s in run.settings], **figures})
        return
    show_table(("setting", "value", "reason"), run.settings)
    print(f"\nsimulated on {chosen.on}")
    hidden = HIDDEN if run.summary.trained_tokens else {*HIDDEN, "trained_tokens"}
    show_table(("figure", "value"), [(k, v) for k, v in figures.items() if k not in hidden])
