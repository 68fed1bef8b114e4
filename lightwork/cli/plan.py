"""Find how to serve a model on a cluster: engines and their sizes, scheduler and batch.

MODEL is what `sim` takes. Each choice is simulated at the rate it can sustain while --share of the requests
get their first token and every further one in time. Prints the best, what bounds it, and what each other
value of a setting would come to. Figures are simulated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lightwork.cli import _options
from lightwork.cli._plan_file import choose
from lightwork.cli._verbs import verb

if TYPE_CHECKING:
    from lightwork.plan.serving import Choice, Found


@verb(
    "lightwork plan shape:llama-3-70b --on sim:h100x16 --slo ttft=0.5,tpot=0.05",
    "lightwork plan shape:llama-3-8b --load 'Recorded(path=\"trace.csv\")' --slo ttft=1,tpot=0.1",
)
@_options.model
@_options.use
@_options.on("sim:a100x8", "The simulated place: sim: and a preset, times how many.")
@_options.load("Poisson(rate=4, num_requests=256)")
@_options.slo(required=True)
@click.option("--share", type=float, default=0.9, show_default=True, help="Of requests that must be in time.")
@_options.seed
@_options.as_json
def command(
    model: str,
    use: tuple[str, ...],
    on: str | None,
    load: str,
    slo: str,
    share: float,
    seed: int,
    as_json: bool,
) -> None:
    from lightwork.cli._output import StatusLine, show_json, show_table
    from lightwork.plan.capacity import Problem
    from lightwork.plan.serving import Trial, search
    from lightwork.serve.loads import parse_load

    chosen = choose(model, on, use, "sim:a100x8")
    problem = Problem(
        plan=chosen.plan(),
        load=parse_load(load),
        slo=_options.parse_slo(slo),
        share=share,
        seed=seed,
    )
    with StatusLine() as status:
        tried = 0

        def progress(trial: Trial) -> None:
            nonlocal tried
            tried += 1
            status(f"{tried} choices tried, last {trial.choice.scheduler!r} with tp {trial.choice.tp}")

        found = search(problem, progress)
    if as_json:
        show_json({"place": chosen.on, "simulated": True, **_figures(found)})
        return
    print(f"simulated on {chosen.on}, {len(found.trials)} choices tried")
    show_table(("setting", "value", "others"), found.reasons())
    print(
        f"\n{found.best.rate:.3g} requests/s with {share:.0%} in time; the load offers {found.offered:.3g}/s"
        f"\nbound by {found.bottleneck()}"
    )


def _figures(found: Found) -> dict[str, object]:
    return {
        "offered_per_s": found.offered,
        "sustained_per_s": found.best.rate,
        **_plain(found.best.choice),
        "bounds": found.run.bounds,
        "bottleneck": found.bottleneck(),
        "tried": [
            _plain(t.choice) | {"rate": t.rate, "share": t.share, "sustained": t.sustained, "why": t.why}
            for t in found.trials
        ],
    }


def _plain(choice: Choice) -> dict[str, object]:
    return choice._asdict() | {"router": repr(choice.router), "scheduler": repr(choice.scheduler)}
