"""Learn what rows are made of by sparse coding, and draw it.

`fit` learns from SOURCE: bars, digits, photos, or a .csv file of numbers. `plot` draws the components of a
SOURCE that `fit --save` wrote. A fit that was interrupted goes on where it was, given the same --save.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightwork.cli import _options
from lightwork.cli._verbs import verb

if TYPE_CHECKING:
    from lightwork.learn.sparse.truncated_em import SparseCoder

MODELS = ("BSC", "TSC", "DSC", "MCA", "MMCA", "GSC")
SHADES = " ░▒▓█"
WIDTH = 100


@verb("lightwork learn fit bars --model BSC", "lightwork learn plot digits.safetensors")
@click.argument("action", type=click.Choice(("fit", "plot")))
@click.argument("source")
@click.option("--model", type=click.Choice(MODELS), default="BSC", show_default=True, help="Which prior.")
@click.option("--components", default=10, show_default=True, help="How many to learn.")
@click.option("--iterations", default=50, show_default=True, help="Of expectation maximisation.")
@click.option("--jobs", default=1, show_default=True, help="Processes.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write what is learnt.")
@_options.seed
@_options.as_json
def command(
    action: str,
    source: str,
    model: str,
    components: int,
    iterations: int,
    jobs: int,
    save: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    from lightwork.learn import saved, sparse

    if action == "plot":
        coder = saved.load(Path(source))
    else:
        settings = {"max_iter": iterations, "n_jobs": jobs, "random_state": seed}
        coder = _fitted(getattr(sparse, model)(components, **settings), source, seed, save)
    _show(coder, as_json)


def _fitted(coder: SparseCoder, source: str, seed: int, save: Path | None) -> SparseCoder:
    from lightwork.learn import saved
    from lightwork.learn.data import rows_of
    from lightwork.runtime.progress import ProgressBar

    rows = rows_of(source, type(coder), seed)
    begun = saved.load(save) if save is not None and save.exists() else None
    goes_on = begun is not None and _settings(begun) == _settings(coder)
    coder = begun if begun is not None and goes_on else coder
    with ProgressBar() as bar:

        def told(phase: str, done: int, total: int) -> None:
            bar(phase, done, total)
            if save is not None:
                saved.save(save, coder)

        coder.progress = told
        return coder.resume(rows) if goes_on else coder.fit(rows)


def _settings(coder: SparseCoder) -> str:
    """What has to be the same for a fit to go on."""
    settings = {n: v for n, v in coder.get_params().items() if n not in ("progress", "n_jobs")}
    return type(coder).__name__ + repr(settings).replace("(", "[").replace(")", "]")


def _show(coder: SparseCoder, as_json: bool) -> None:
    from lightwork.cli._output import show_json

    prior = [round(float(p), 6) for p in coder.prior_]
    if as_json:
        free_energy = coder.free_energy_[-1]
        told = {"model": type(coder).__name__, "prior": prior, "noise": coder.noise_}
        show_json(told | {"free_energy": free_energy, "components": coder.components_.tolist()})
        return
    for line in drawn(coder.components_):
        print(line)
    shown = ", ".join(f"{p:.4g}" for p in prior[:8]) + ", ..." * (len(prior) > 8)
    print(f"\n{type(coder).__name__}: noise {coder.noise_:.4g}, prior {shown}", end="")
    print(f", free energy {coder.free_energy_[-1]:.6g} a row")


def drawn(components: object) -> list[str]:
    """Components [H, D] as squares of two characters a number, side by side; a row each if D is no square."""
    import numpy as np

    W = np.asarray(components)
    size = round(W.shape[1] ** 0.5)
    height = size if size * size == W.shape[1] else 1
    strength = np.abs(W) / max(float(np.abs(W).max()), 1e-12)
    shade = np.rint(strength * (len(SHADES) - 1)).astype(int).reshape(len(W), height, -1)
    each = max(1, WIDTH // (2 * shade.shape[2] + 2))
    lines = []
    for begin in range(0, len(W), each):
        for row in range(height):
            parts = ["".join(2 * SHADES[i] for i in one[row]) for one in shade[begin : begin + each]]
            lines.append("  ".join(parts).rstrip())
        lines.append("")
    return lines
