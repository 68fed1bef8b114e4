"""Find the settings with which this machine serves a load best, by measuring.

MODEL is what `serve` takes. Tries chunks, batches and threads: each is predicted from step times of this
machine, the most promising are measured beside the default in the same period. One that is not ahead of it
each time keeps the default. --save writes a plan file for `serve`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightwork import home
from lightwork.cli import _options
from lightwork.cli._plan_file import choose
from lightwork.cli._verbs import verb

if TYPE_CHECKING:
    from lightwork.plan.tune import Trial, Tuned, Tuning
    from lightwork.serve.plan import Plan


@verb(
    "lightwork tune tiny:llama",
    "lightwork tune hf:./model --load 'Poisson(rate=4)' --slo ttft=0.5,tpot=0.05 --save plan.toml",
)
@_options.model
@_options.use
@_options.on("cpu", "Where it runs: cpu, cuda:0.")
@_options.load("Burst(num_requests=32)")
@_options.slo(required=False)
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write a plan file.")
@_options.seed
@_options.as_json
def command(
    model: str,
    use: tuple[str, ...],
    on: str | None,
    load: str,
    slo: str | None,
    save: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    from lightwork.cli._output import StatusLine
    from lightwork.plan.tune import Tuning, tune
    from lightwork.serve.loads import parse_load
    from lightwork.serve.plan_file import plan_text

    chosen = choose(model, on, use, "cpu")
    tuning = Tuning(
        plan=chosen.plan(),
        load=parse_load(load),
        slo=_options.parse_slo(slo) if slo else None,
        seed=seed,
    )
    with StatusLine() as status:

        def told(trial: Trial) -> None:
            status(f"{_name(trial)}: {trial.why or f'{trial.measured[-1]:.4g}'}")

        tuned = tune(tuning, told)
    if save is not None:
        text = plan_text(_best(tuning, tuned), f"lightwork tune: {_gain(tuned)} on {tuning.load!r}")
        home.save(save, lambda part: part.write_text(text, encoding="utf-8"))
    _show(tuning, tuned, as_json)


def _show(tuning: Tuning, tuned: Tuned, as_json: bool) -> None:
    from lightwork.cli._output import show_json, show_table

    measured = sorted(
        (t for t in tuned.trials if t.measured or t.why), key=lambda t: -max(t.measured, default=0)
    )
    unit = "tokens/s" if tuning.slo is None else "requests/s in time"
    if as_json:
        rows = [
            {"setting": _name(t), "predicted": t.predicted, "measured": t.measured, "why": t.why}
            for t in measured
        ]
        curves = [c._asdict() for c in tuned.curves]
        best = {"setting": _name(tuned.best), "ratio": tuned.best.ratio}
        show_json({"unit": unit, "best": best, "noise": tuned.noise, "trials": rows, "curves": curves})
        return
    columns = ("setting", "predicted", f"measured, {unit}", "over the default")
    show_table(columns, [_row(trial) for trial in measured])
    print()
    for curve in tuned.curves:
        values = "  ".join(
            f"{value} {height:.4g}{'' if real else '*'}" for value, height, real in curve.points
        )
        shape = "smooth" if curve.peaks == 1 else f"{curve.peaks} peaks"
        print(f"{curve.name} ({shape}): {values}")
    print("* predicted\n")
    print(f"best  {_name(tuned.best)}  {_gain(tuned)}")
    print(f"noise {tuned.noise:.1%}; {tuned.runs} runs, of {len(tuned.trials)} settings")


def _row(trial: Trial) -> tuple[str, str, str, str]:
    figures = " ".join(f"{figure:.4g}" for figure in trial.measured)
    ratio = (
        f"{trial.ratio:.2f}x [{min(trial.ratios):.2f}, {max(trial.ratios):.2f}]"
        if trial.ratios
        else trial.why
    )
    return _name(trial), f"{trial.predicted:.4g}", figures, ratio


def _name(trial: Trial) -> str:
    setting = trial.setting
    return f"{setting.scheduler!r} max_seqs={setting.max_seqs} threads={setting.threads}"


def _gain(tuned: Tuned) -> str:
    return (
        f"{tuned.best.ratio:.2f}x the default" if tuned.best is not tuned.default else "the default is kept"
    )


def _best(tuning: Tuning, tuned: Tuned) -> Plan:
    """What `serve` is to be given."""
    setting = tuned.best.setting
    others = [t for kind, t in tuning.plan.techniques().items() if kind != "scheduler"]
    return replace(
        tuning.plan,
        use=(*others, setting.scheduler),
        max_seqs=setting.max_seqs,
        threads=setting.threads,
    )
