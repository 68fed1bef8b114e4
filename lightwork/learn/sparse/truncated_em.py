"""Expectation maximisation over the few states that matter of each data point: what all models share.

An iteration, at temperature T, over the rows Y of all shards:

    E  for each row, H' candidate units by a cheap score; sums over the empty state, all single units, and all
       states of 2..gamma candidates, each weighted by its posterior at T
    cut  rows that need more than gamma units explain nothing: only the N_use rows of largest evidence count
    M  parameters from the sums

T falls from above 1 to 1 and the cut sets in, by schedules over the iterations. With T = 1, no cut and
H' = gamma = H it is exact expectation maximisation, and the free energy never falls.

N rows  D dimensions  H units (n_components)
Source: Lücke and Eggert (JMLR 11, 2010); the defaults of schedules are ProSper's (Exarchakis et al., 2019).
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import KW_ONLY, dataclass
from math import ceil, comb, log, pi
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpocon, dpotrf, dpotrs
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from lightwork.errors import RangeError
from lightwork.kernels.truncated import NOTHING, Found
from lightwork.learn.schedules import Schedule, at
from lightwork.learn.shards import (
    Here,
    Map,
    Placed,
    Sums,
    alone,
    kth_largest,
    parts,
)
from lightwork.learn.sparse.covariances import coloured
from lightwork.learn.sparse.posteriors import Posterior, posterior
from lightwork.learn.sparse.shard import BLOCK, Part, Shard
from lightwork.runtime.actors import Actors
from lightwork.runtime.clock import WallClock
from lightwork.runtime.effects import Work
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.places.process import Process
from lightwork.runtime.progress import Progress

Floats = NDArray[Any]
Params = Mapping[str, Floats]
"""By name; W [H, D] is always there, sigma () too."""
LEAST = 1e-6
"""Of probabilities, so that nothing is impossible for ever."""
SINGULAR = 1e-12
"""The reciprocal of a condition number below which a matrix is not to be inverted."""
DEAD = 1e-8
"""A unit that is expected in fewer rows than this share keeps its component."""


class Knobs(NamedTuple):
    """Of one iteration. beta: 1 / T, on the likelihood. beta_prior: on the prior."""

    beta: float
    beta_prior: float
    candidates: int
    gamma: int


class Local(NamedTuple):
    """What an E-step finds in some rows. sums: over the rows that are kept. evidence: log of the sum over
    states, [N]. means: posterior, [N, H]. chosen: candidates, [N, H'].
    """

    sums: dict[str, Floats]
    evidence: Floats
    means: Floats
    chosen: NDArray[np.int32]


@dataclass(eq=False, repr=False)
class SparseCoder(TransformerMixin, BaseEstimator, metaclass=ABCMeta):
    """n_components: units, H. n_candidates: H' of each row, None: 8 or all. n_active: gamma, None: 4 or all
    candidates. max_iter: iterations. temperature, cut: schedules; temperature None: the model's, `annealing`.
    partial: the share of rows that an iteration looks at, others each time. jitter: by parameter (W, prior,
    sigma), the deviation of normal noise that is added before an iteration. n_jobs: processes. random_state:
    seed; of which rows and what noise, too, where it is a number. progress: told after each iteration.

    Learnt: components_ [H, D], prior_, noise_ (sigma), free_energy_ (per row, before each iteration),
    n_iter_.
    """

    n_components: int = 8
    _: KW_ONLY
    n_candidates: int | None = None
    n_active: int | None = None
    max_iter: int = 50
    temperature: Schedule | None = None
    cut: Schedule = ((0.0, 0.0), (0.66, 1.0))
    partial: Schedule = 1.0
    jitter: Mapping[str, Schedule] | None = None
    n_jobs: int = 1
    random_state: Any = None
    progress: Progress | None = None

    anneal_prior: ClassVar[bool] = False
    """Whether T acts on the prior as well."""
    annealing: ClassVar[Schedule] = ((0.0, 5.0), (0.8, 1.0))
    """Of T, unless another is given."""

    # -- what a model says

    @abstractmethod
    def _start(self, X: Floats, rng: np.random.RandomState) -> Params:
        """Parameters to begin with."""

    def _values(self) -> tuple[float, ...]:
        """Of a unit, without zero."""
        return (1.0,)

    @abstractmethod
    def _local(self, params: Params, Y: Floats, knobs: Knobs, found: Found = NOTHING) -> Local:
        """The E-step over some rows [N, D]. found: if it has room, it is filled, and sums and means are
        not."""

    @abstractmethod
    def _update(self, params: Params, total: Sums, knobs: Knobs) -> Params:
        """The M-step."""

    @abstractmethod
    def _draw(self, num: int, rng: np.random.RandomState) -> tuple[Floats, Floats]:
        """Observations without noise [N, D], and their units [N, H]."""

    def _within_bounds(self, params: Params) -> Params:
        """Parameters after noise was added to them."""
        prior = np.clip(params["prior"], LEAST, 1.0 - LEAST)
        return {**params, "prior": prior, "sigma": np.maximum(params["sigma"], LEAST)}

    def _active_rate(self, params: Params) -> float:
        """How probable it is that a unit is active."""
        return float(np.sum(params["prior"]))

    # -- what users call

    def fit(self, X: Any, y: Any = None) -> SparseCoder:
        """Learn from rows [N, D], from a start drawn with random_state. Raises RangeError for impossible
        sizes, ValueError for data that is no finite matrix.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        self._knobs(1.0)
        return self._over_jobs(X, None)

    def resume(self, X: Any) -> SparseCoder:
        """Go on with a fit that was interrupted, over the same rows; ends as it would have ended."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self._over_jobs(X, self._params)

    async def fit_over(self, map: Map, X: Floats, params: Params | None = None) -> None:
        """Learn from shards, wherever they are (`Here`, `Placed`, `Ranks`): a strategy. X: what to start
        from, unless from params."""
        self._seen: Sums | None = None
        if params is None:
            params = self._start(X, check_random_state(self.random_state))
            self.free_energy_: list[float] = []
        self._learned(await self._iterate(map, params))

    def shard(self, X: Floats, first: int = 0) -> Shard:
        """Rows [N, D] as a map has them. first: which of all rows is the first of these."""
        model = copy(self)
        model.progress = None  # it is told here, and need not fit through a pipe
        return Shard(model, X, first)

    def partial_fit(self, X: Any, y: Any = None) -> SparseCoder:
        """One iteration over some rows, at temperature 1 and without a cut. Sums of earlier rows fade as
        Cappé and Moulines (2009) have it: the t-th call counts (t + 1)^-0.6.
        """
        first = not hasattr(self, "components_")
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=first)
        knobs = self._knobs(1.0)
        if first:
            self.free_energy_ = []
            self._seen = None
            self._learned(self._start(X, check_random_state(self.random_state)))
        total = alone(Here([Shard(self, X)]).run("statistics", self._params, knobs))
        share = (len(self.free_energy_) + 1) ** -0.6
        rows = len(X)
        new = {name: share * array / rows for name, array in total.arrays.items()}
        old = (
            self._seen.arrays
            if self._seen is not None
            else {name: a / rows for name, a in total.arrays.items()}
        )
        self._seen = Sums({name: (1 - share) * old[name] + new[name] for name in new})
        self.free_energy_.append(self._free_energy(self._params, total, rows))
        self._learned(self._update(self._params, self._seen, knobs))
        return self

    def transform(self, X: Any) -> Floats:
        """Posterior means of the units [N, H]."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return np.concatenate([local.means for _, local in self._blocks(X)]).astype(X.dtype, copy=False)

    def infer(self, X: Any, n_states: int = 10, max_active: int | None = None) -> Posterior:
        """The most probable states of each row, and how probable it is that each unit is active.

        max_active: a row whose best state has n_active units is looked at again with one candidate and one
        active unit more, and so on up to this many; None: not. Raises RangeError for less than one state.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return posterior(self, X, n_states, max_active)

    def score(self, X: Any, y: Any = None) -> float:
        """The free energy per row: what the log-likelihood is at least."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        total = alone(Here([Shard(self, X)]).run("statistics", self._params, self._knobs(1.0)))
        return self._free_energy(self._params, total, len(X))

    def sample(self, n_samples: int = 1) -> tuple[Floats, Floats]:
        """Rows [N, D] drawn from the model, and the units that made them [N, H]."""
        check_is_fitted(self)
        rng = check_random_state(self.random_state)
        mean, units = self._draw(n_samples, rng)
        return mean + coloured(rng.standard_normal(mean.shape), self._params["sigma"]), units

    # -- the rest

    def _over_jobs(self, X: Floats, params: Params | None) -> SparseCoder:
        shards = [self.shard(X[rows], rows.start) for rows in parts(self.n_jobs, len(X))]
        if self.n_jobs == 1:
            alone(self.fit_over(Here(shards), X, params))
            return self
        kernel = Kernel(WallClock())
        with Actors(kernel, [Process() for _ in shards]) as actors:
            kernel.run(self.fit_over(Placed(actors, shards), X, params))
        return self

    async def _iterate(self, map: Map, params: Params) -> Params:
        for i in range(len(self.free_energy_), self.max_iter):
            temperature = self.annealing if self.temperature is None else self.temperature
            knobs = self._knobs(at(temperature, i, self.max_iter))
            part, params = self._part(i, map.num_rows), self._jittered(i, params)
            cut = at(self.cut, i, self.max_iter)
            share = 1.0 - (1.0 - within(self.n_components, knobs.gamma, self._active_rate(params))) * cut
            rows = map.num_rows if part is None else part.num
            num = max(1, round(rows * share))
            if num < rows:
                await map.run("evidence", params, knobs, part)
                total = await map.run("cut", await kth_largest(map, num))
            else:
                total = await map.run("statistics", params, knobs, part)
            self.free_energy_.append(self._free_energy(params, total, rows))
            params = await map.alike(self._update_work(params), self._update, params, total, knobs)
            self._learned(params)
            if self.progress is not None:
                self.progress("iterations", i + 1, self.max_iter)
        return params

    def _seed(self, iteration: int) -> tuple[int, int]:
        fixed = isinstance(self.random_state, int | np.integer)
        return (int(self.random_state) if fixed else 0, iteration)

    def _part(self, iteration: int, rows: int) -> Part | None:
        """None: all rows. Raises RangeError for a share that is none."""
        share = at(self.partial, iteration, self.max_iter)
        if not 0 < share <= 1:
            raise RangeError(f"{share:g} of the rows", expected="more than 0, at most 1")
        num = ceil(share * rows)
        return None if num == rows else Part(self._seed(iteration), num, rows)

    def _jittered(self, iteration: int, params: Params) -> Params:
        """Raises RangeError for a parameter that is none, or noise that is negative."""
        scales = {name: at(by, iteration, self.max_iter) for name, by in (self.jitter or {}).items()}
        if not {*scales} <= {"W", "prior", "sigma"} or not all(scale >= 0 for scale in scales.values()):
            raise RangeError(f"jitter {scales}", expected="W, prior or sigma, and deviations of at least 0")
        if not any(scales.values()):
            return params
        rng = np.random.default_rng(self._seed(iteration))
        noise = {name: by * rng.standard_normal(params[name].shape) for name, by in sorted(scales.items())}
        return self._within_bounds({**params, **{name: params[name] + by for name, by in noise.items()}})

    def _update_work(self, params: Params) -> tuple[Work, ...]:
        """Of an M-step: a system of H equations for D dimensions."""
        units, dimensions = params["W"].shape
        ops = units**2 * (2 * units / 3 + 4 * dimensions)
        return (Work(dtype="float64", ops=ops, bytes=8 * units * (units + 3 * dimensions), rows=units),)

    def _learned(self, params: Params) -> None:
        self._params = params
        self.components_ = params["W"]
        self.prior_ = params["prior"]
        sigma = params["sigma"]
        self.noise_: Any = sigma if np.ndim(sigma) else float(sigma)
        self.n_iter_ = max(1, len(self.free_energy_))

    def _knobs(self, temperature: float) -> Knobs:
        """Raises RangeError for impossible sizes."""
        units = self.n_components
        candidates = min(8, units) if self.n_candidates is None else self.n_candidates
        gamma = min(4, candidates) if self.n_active is None else self.n_active
        if not 1 <= gamma <= candidates <= units:
            raise RangeError(
                f"n_active={gamma}, n_candidates={candidates}, n_components={units}",
                expected="1 <= n_active <= n_candidates <= n_components",
            )
        if not temperature >= 1:
            raise RangeError(f"a temperature of {temperature}", expected="at least 1")
        beta = 1.0 / temperature
        return Knobs(beta, beta if self.anneal_prior else 1.0, candidates, gamma)

    def _free_energy(self, params: Params, total: Sums, rows: int) -> float:
        """Of one row, by its normalised prior over states of at most gamma units."""
        inside = within(self.n_components, self._knobs(1.0).gamma, self._active_rate(params))
        return float(total["evidence"]) / rows - log(inside)

    def _blocks(self, X: Floats) -> Iterator[tuple[slice, Local]]:
        knobs = self._knobs(1.0)
        for begin in range(0, len(X), BLOCK):
            rows = slice(begin, min(begin + BLOCK, len(X)))
            Y = X[rows]
            yield rows, self._local(self._params, Y, knobs)


def within(units: int, gamma: int, rate: float) -> float:
    """How probable at most gamma of the units are active."""
    return min(1.0, sum(comb(units, j) * rate**j * (1 - rate) ** (units - j) for j in range(gamma + 1)))


def corrected_rate(units: int, gamma: int, rate: float, mean_active: float) -> float:
    """The rate whose truncated prior expects so many active units, one fixed-point step from `rate`."""
    weights = [comb(units, j) * rate**j * (1 - rate) ** (units - j) for j in range(gamma + 1)]
    expected = sum(j * weight for j, weight in enumerate(weights))
    return float(np.clip(rate * sum(weights) / expected * mean_active, LEAST, 1 - LEAST))


def start_components(X: Floats, units: int, rng: np.random.RandomState) -> tuple[Floats, Floats]:
    """W [H, D] about the mean row, and sigma: the mean deviation of a dimension."""
    spread = float(X.std(axis=0, dtype=np.float64).mean()) or 1.0
    W = X.mean(axis=0, dtype=np.float64) + spread / 4 * rng.standard_normal((units, X.shape[1]))
    sigma: Any = np.float64(spread)
    return W, sigma


def solved(squares: Floats, outer: Floats) -> Floats:
    """The components W [H, D] of least squares: squares W = outer. Of units that are never told apart, the
    smallest."""
    factor, failed = dpotrf(squares, lower=1)
    if not failed:
        reciprocal, _ = dpocon(factor, np.abs(squares).sum(0).max(), uplo="L")
        if reciprocal > SINGULAR:
            result: Floats = np.ascontiguousarray(dpotrs(factor, outer, lower=1)[0])
            return result
    least: Floats = np.linalg.lstsq(squares, outer, rcond=None)[0]
    return least


def log_empty(Y: Floats, params: Params, knobs: Knobs, log_absent: float) -> Floats:
    """The logarithm of the joint of each row and the empty state [N], annealed. log_absent: of the prior of
    that state."""
    variance, dimensions = float(params["sigma"]) ** 2, Y.shape[1]
    square = np.einsum("nd,nd->n", Y, Y, dtype=np.float64)
    likelihood = -0.5 * dimensions * log(2 * pi * variance) - 0.5 * square / variance
    result: Floats = knobs.beta * likelihood + knobs.beta_prior * log_absent
    return result
