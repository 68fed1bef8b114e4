"""Fit the gates of models/duo_router.py to what oracles found out.

An oracle's table has the loss of every pattern of a token. So for each layer and what may come before it, it
says exactly how much a big MLP here saves, over a small one, if the layers behind share what is left of the
budget at random. Gates foretell that from the hidden state, by ridge regression. A router that follows them
is better than random as far as they foretell rightly; the labels alone (which layers the best pattern takes)
would not say which of two mistakes is the worse one.

N patterns, 2^L  P paths  L layers  B budgets, 0 to L  S states  d hidden
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightwork.models.duo import BIG
from lightwork.models.duo_oracle import Prefixes, every_pattern
from lightwork.models.duo_router import Gates, features

RIDGES = (1e1, 1e2, 1e3, 1e4, 1e5)
HELD_OUT = 4
"""One token in so many chooses the ridge."""


@dataclass(slots=True)
class Lesson:
    """What one token teaches: of some paths, in each layer, the state and what big saves.

    states [P, L, d]. saved [P, L, B]: with that many big layers left; NaN where there can be none, or no
    choice.
    """

    states: Tensor
    saved: Tensor


def tabulate(prefixes: Prefixes, at: int, num_layers: int, paths_P: Tensor) -> tuple[Tensor, Lesson]:
    """Losses of every pattern of a token, [N], in the order of `every_pattern`, and what they teach.

    paths_P: which patterns gates are shown the states of.
    """
    seen: list[Tensor] = []
    patterns_NL = every_pattern(num_layers)
    losses_N = prefixes.losses(at, patterns_NL, lambda i, x_Sd, state_N: seen.append(x_Sd[state_N[paths_P]]))
    saved = [_saved(losses_N, layer, paths_P, num_layers) for layer in range(num_layers)]
    return losses_N, Lesson(torch.stack(seen, 1), torch.stack(saved, 1))


def _saved(losses_N: Tensor, layer: int, paths_P: Tensor, num_layers: int) -> Tensor:
    """[P, B]: mean loss with a small MLP in this layer less that with a big one, by what is left before."""
    behind = num_layers - layer - 1
    of_paths = losses_N.view(1 << layer, 2, 1 << behind)[paths_P >> (behind + 1)]
    num_big = (every_pattern(behind) == BIG).sum(1) if behind else torch.zeros(1, dtype=torch.int64)
    groups = torch.nn.functional.one_hot(num_big, behind + 1).float()
    means = of_paths @ (groups / groups.sum(0))  # [P, small or big, how many of those behind are big]
    saved = torch.full((len(paths_P), num_layers + 1), float("nan"))
    saved[:, 1 : behind + 1] = means[:, 0, 1:] - means[:, 1, :-1]
    return saved


@dataclass(slots=True)
class Fit:
    """Gates, and what they were fitted with. ridges: of each layer; shares: of the variance of what is saved
    on tokens not fitted to, how much each layer's gate foretells."""

    gates: Gates
    ridges: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)


def fit_gates(lessons: Iterable[Lesson]) -> Fit:
    """Gates that foretell what lessons say, each layer's with the ridge that does best on held-out ones."""
    lessons = list(lessons)
    states = torch.stack([lesson.states for lesson in lessons])  # [tokens, P, L, d]
    saved = torch.stack([lesson.saved for lesson in lessons])
    held = torch.arange(len(lessons)) % HELD_OUT == HELD_OUT - 1
    num_layers, width = states.shape[2:]
    weights, bias = torch.zeros(num_layers, num_layers + 1, width), torch.zeros(num_layers, num_layers + 1)
    fit = Fit(Gates(weights=weights, bias=bias))
    for i in range(num_layers - 1):
        x, y = features(states[:, :, i]), saved[:, :, i, 1 : num_layers - i]
        tried = [(_error(*_ridge(x[~held], y[~held], ridge), x[held], y[held]), ridge) for ridge in RIDGES]
        error, ridge = min(tried)
        weights[i, 1 : num_layers - i], bias[i, 1 : num_layers - i] = _ridge(x, y, ridge)
        fit.ridges.append(ridge)
        fit.shares.append(1.0 - error / float((y[held] - y[~held].mean((0, 1))).square().mean()))
    return fit


def _ridge(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights [B, d] and bias [B] of y [tokens, P, B] on x [tokens, P, d]; the bias is not held back."""
    x, y = x.flatten(0, 1).double(), y.flatten(0, 1).double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    w_dB = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    return w_dB.T.float(), (mean_y - mean_x @ w_dB).float()


def _error(w_Bd: Tensor, bias_B: Tensor, x: Tensor, y: Tensor) -> float:
    return float((x @ w_Bd.T + bias_B - y).square().mean())
