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
from math import comb, log, pi
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from lightwork.errors import InvariantError, RangeError
from lightwork.learn.schedules import Schedule, at
from lightwork.learn.shards import (
    Here,
    Map,
    Placed,
    Sums,
    alone,
    histogram,
    kth_largest,
    order_bits,
    parts,
)
from lightwork.runtime.actors import Actors
from lightwork.runtime.clock import WallClock
from lightwork.runtime.effects import Work
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.places.process import Process
from lightwork.runtime.progress import Progress

Floats = NDArray[Any]
Params = Mapping[str, Floats]
"""By name; W [H, D] is always there, sigma () too."""
BLOCK = 4096
"""Rows at once: what an E-step holds beside the data is BLOCK x H."""
LEFT_OUT = 16
"""A cut is taken to leave out one row in so many, where it is not known."""
MOST_TAKEN = 1e6
"""Off a sum, in terms of what is left: ten digits remain."""
LEAST = 1e-6
"""Of probabilities, so that nothing is impossible for ever."""


class Knobs(NamedTuple):
    """Of one iteration. beta: 1 / T, on the likelihood. beta_prior: on the prior."""

    beta: float
    beta_prior: float
    candidates: int
    gamma: int


class Local(NamedTuple):
    """What an E-step finds in some rows. sums: over the rows that are kept. evidence: log of the sum over
    states, [N]. means: posterior, [N, H]; rows that are not kept are zero.
    """

    sums: dict[str, Floats]
    evidence: Floats
    means: Floats


class SparseCoder(TransformerMixin, BaseEstimator, metaclass=ABCMeta):
    """n_components: units, H. n_candidates: H' of each row, None: 8 or all. n_active: gamma, None: 4 or all
    candidates. max_iter: iterations. temperature, cut: schedules. n_jobs: processes. random_state: seed.
    progress: told after each iteration.

    Learnt: components_ [H, D], prior_, noise_ (sigma), free_energy_ (per row, before each iteration),
    n_iter_.
    """

    anneal_prior = False
    """Whether T acts on the prior as well."""

    def __init__(
        self,
        n_components: int = 8,
        *,
        n_candidates: int | None = None,
        n_active: int | None = None,
        max_iter: int = 50,
        temperature: Schedule = ((0.0, 5.0), (0.8, 1.0)),
        cut: Schedule = ((0.0, 0.0), (0.66, 1.0)),
        n_jobs: int = 1,
        random_state: Any = None,
        progress: Progress | None = None,
    ) -> None:
        self.n_components = n_components
        self.n_candidates = n_candidates
        self.n_active = n_active
        self.max_iter = max_iter
        self.temperature = temperature
        self.cut = cut
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.progress = progress

    # -- what a model says

    @abstractmethod
    def _start(self, X: Floats, rng: np.random.RandomState) -> Params:
        """Parameters to begin with."""

    @abstractmethod
    def _local(self, params: Params, Y: Floats, knobs: Knobs, keep: NDArray[np.bool_]) -> Local:
        """The E-step over some rows [N, D]."""

    @abstractmethod
    def _update(self, params: Params, total: Sums, knobs: Knobs) -> Params:
        """The M-step."""

    @abstractmethod
    def _draw(self, num: int, rng: np.random.RandomState) -> tuple[Floats, Floats]:
        """Observations without noise [N, D], and their units [N, H]."""

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

    def shard(self, X: Floats) -> Shard:
        """Rows [N, D] as a map has them."""
        model = copy(self)
        model.progress = None  # it is told here, and need not fit through a pipe
        return Shard(model, X)

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
        return mean + self.noise_ * rng.standard_normal(mean.shape), units

    # -- the rest

    def _over_jobs(self, X: Floats, params: Params | None) -> SparseCoder:
        shards = [self.shard(X[rows]) for rows in parts(self.n_jobs, len(X))]
        if self.n_jobs == 1:
            alone(self.fit_over(Here(shards), X, params))
            return self
        kernel = Kernel(WallClock())
        with Actors(kernel, [Process() for _ in shards]) as actors:
            kernel.run(self.fit_over(Placed(actors, shards), X, params))
        return self

    async def _iterate(self, map: Map, params: Params) -> Params:
        for i in range(len(self.free_energy_), self.max_iter):
            knobs = self._knobs(at(self.temperature, i, self.max_iter))
            cut = at(self.cut, i, self.max_iter)
            share = 1.0 - (1.0 - within(self.n_components, knobs.gamma, self._active_rate(params))) * cut
            num = max(1, round(map.num_rows * share))
            if num < map.num_rows:
                await map.run("evidence", params, knobs)
                total = await map.run("cut", await kth_largest(map, num))
            else:
                total = await map.run("statistics", params, knobs)
            self.free_energy_.append(self._free_energy(params, total, map.num_rows))
            params = await map.alike(self._update_work(params), self._update, params, total, knobs)
            self._learned(params)
            if self.progress is not None:
                self.progress("iterations", i + 1, self.max_iter)
        return params

    def _update_work(self, params: Params) -> tuple[Work, ...]:
        """Of an M-step: a system of H equations for D dimensions."""
        units, dimensions = params["W"].shape
        ops = units**2 * (2 * units / 3 + 4 * dimensions)
        return (Work(dtype="float64", ops=ops, bytes=8 * units * (units + 3 * dimensions), rows=units),)

    def _learned(self, params: Params) -> None:
        self._params = params
        self.components_ = params["W"]
        self.prior_ = params["prior"]
        self.noise_ = float(params["sigma"])
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
            yield rows, self._local(self._params, Y, knobs, np.ones(len(Y), bool))


class Shard:
    """Some rows, and what the last E-step said of each.

    Which rows a cut keeps is known when the evidence of all shards is. Most rows are kept: `evidence` sums
    over all in the same pass, and `cut` takes off the others' sums.
    """

    continues = ("histogram", "cut")

    def __init__(self, model: SparseCoder, Y: Floats) -> None:
        self._model = model
        self._rows = np.ascontiguousarray(Y)
        self._last: _Pass | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def statistics(self, params: Params, knobs: Knobs) -> Sums:
        """The sums that the M-step needs, of all rows."""
        found = self._pass(params, knobs)
        return found.told(found.sums)

    def evidence(self, params: Params, knobs: Knobs) -> Sums:
        """Find each row's evidence and keep it here, for a cut."""
        self._last = self._pass(params, knobs)
        return Sums({})

    def histogram(self, prefix: int, shift: int) -> Sums:
        return histogram(self._found().bits, prefix, shift)

    def cut(self, threshold: np.uint64) -> Sums:
        """As statistics, of rows whose evidence was at least the threshold."""
        found = self._found()
        keep = found.bits >= threshold
        if 2 * np.count_nonzero(keep) > len(keep):
            left = less(found.sums, self._pass(found.params, found.knobs, ~keep).sums)
            if left is not None:
                return found.told(left)
        none = Sums({name: np.zeros_like(array) for name, array in found.sums.arrays.items()})
        return found.told(none.merge(self._pass(found.params, found.knobs, keep).sums))

    def _found(self) -> _Pass:
        if self._last is None:
            raise InvariantError("a cut of rows whose evidence is not known", expected="evidence before it")
        return self._last

    def _pass(self, params: Params, knobs: Knobs, among: NDArray[np.bool_] | None = None) -> _Pass:
        """Over all rows, or some."""
        total, evidence = Sums({}), np.zeros(len(self._rows))
        for begin in range(0, len(self._rows), BLOCK):
            rows: Any = slice(begin, min(begin + BLOCK, len(self._rows)))
            rows = rows if among is None else begin + np.flatnonzero(among[rows])
            Y = self._rows[rows]
            if not len(Y):
                continue
            local = self._model._local(params, Y, knobs, np.ones(len(Y), bool))
            evidence[rows] = local.evidence
            shared: dict[str, Any] = {
                "kept": np.float64(len(Y)),
                "square": np.einsum("nd,nd->", Y, Y, dtype=np.float64),
            }
            total = total.merge(Sums({**shared, **local.sums}))
        return _Pass(params, knobs, total, float(evidence.sum()), order_bits(evidence))

    def work(self, method: str, rows: int) -> tuple[Work, ...]:
        """What a method takes over so many rows: scores of all units, states, and sums."""
        if method == "histogram":
            return (Work(kind="vector", dtype="float64", ops=3 * rows, bytes=8 * rows),)
        if method == "cut":
            rows = -(-rows // LEFT_OUT)
        knobs, (units, dimensions) = self._model._knobs(1.0), (self._model.n_components, self._rows.shape[1])
        num = sum(comb(knobs.candidates, j) for j in range(2, knobs.gamma + 1))
        products = 4 * rows * units * dimensions
        return (
            Work(dtype="float64", ops=products, bytes=rows * self._rows.itemsize * dimensions, rows=rows),
            Work(kind="vector", dtype="float64", ops=rows * (units + 2 * num * knobs.gamma), launches=0),
        )


class _Pass(NamedTuple):
    """Over the rows of a shard. evidence: the sum of all rows'; bits: the order of each's."""

    params: Params
    knobs: Knobs
    sums: Sums
    evidence: float
    bits: NDArray[np.uint64]

    def told(self, sums: Sums) -> Sums:
        """Sums with the evidence; nothing of no rows."""
        return Sums({"evidence": np.array(self.evidence), **sums.arrays}) if sums.arrays else sums


def less(total: Sums, went: Sums) -> Sums | None:
    """Sums without those of some rows; None if that leaves one of them too few digits."""
    if not went.arrays:
        return total
    left = {name: array - went[name] for name, array in total.arrays.items()}
    precise = all(np.all(np.abs(went[name]) <= MOST_TAKEN * np.abs(x)) for name, x in left.items())
    return Sums(left) if precise else None


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


def log_empty(Y: Floats, params: Params, knobs: Knobs, log_absent: float) -> Floats:
    """The logarithm of the joint of each row and the empty state [N], annealed. log_absent: of the prior of
    that state."""
    variance, dimensions = float(params["sigma"]) ** 2, Y.shape[1]
    square = np.einsum("nd,nd->n", Y, Y, dtype=np.float64)
    likelihood = -0.5 * dimensions * log(2 * pi * variance) - 0.5 * square / variance
    result: Floats = knobs.beta * likelihood + knobs.beta_prior * log_absent
    return result
