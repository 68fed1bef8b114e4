"""Sparse coding: sums over states equal those over all of them, free energy rises, causes are found."""

from __future__ import annotations

import warnings
from itertools import product
from math import log, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from lightwork.errors import CheckpointError, InvariantError, RangeError
from lightwork.learn.data import MODELS, bars, num_found
from lightwork.learn.saved import load, save
from lightwork.learn.shards import order_bits, parts, reduced
from lightwork.learn.sparse import BSC, DSC, GSC, MCA, MMCA, TSC
from lightwork.learn.sparse.linear import Linear
from lightwork.learn.sparse.shard import Part, Shard
from lightwork.learn.sparse.truncated_em import Knobs, SparseCoder, solved

UNITS, DIMS, ROWS = 4, 6, 12
EXACT = {"n_candidates": UNITS, "n_active": UNITS, "temperature": 1.0, "cut": 0.0}


def started(model: type[SparseCoder]) -> tuple[SparseCoder, dict[str, Any], np.ndarray[Any, Any]]:
    """A model of four units, parameters and rows of no special form."""
    rng = np.random.default_rng(3)
    coder = model(UNITS, **EXACT)
    Y = rng.standard_normal((ROWS, DIMS)) + 1.0
    params: dict[str, Any] = dict(coder._start(Y, np.random.RandomState(0)))
    params["W"] = rng.standard_normal((UNITS, DIMS))
    if model is MCA:
        params["W"] = np.abs(params["W"]) + 0.1
    params["sigma"] = np.float64(0.7)
    if model is GSC:
        params |= {
            "prior": np.array([0.1, 0.3, 0.2, 0.6]),
            "mu": rng.standard_normal(4),
            "psi": np.array([0.2, 1.0, 0.5, 2.0]),
        }
    elif model in (TSC, DSC):
        params["prior"] = np.array([0.15, 0.15] if model is TSC else [0.2, 0.1])
    else:
        params["prior"] = np.array([0.3])
    return coder, params, Y


def seen(
    coder: SparseCoder, params: dict[str, Any], state: tuple[float, ...], knobs: Knobs
) -> np.ndarray[Any, Any]:
    """The mean row of a state."""
    s, W = np.array(state), params["W"]
    if not isinstance(coder, MCA):
        return s @ W
    rho = coder._rho(knobs)
    t = (s[:, None] * np.sign(W) * np.abs(W) ** rho).sum(0)
    return np.sign(t) * np.abs(t) ** (1 / rho) if s.any() else np.zeros(DIMS)


def all_joints(
    coder: SparseCoder, params: dict[str, Any], Y: np.ndarray[Any, Any], knobs: Knobs
) -> list[tuple[tuple[float, ...], np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Each state, its log-joint [N] with the rows and its mean units [N, H], in D x D matrices."""
    values, found = (0.0, *coder._values()), []
    for state in product(values, repeat=UNITS):
        s, W, noise = np.array(state), params["W"], params["sigma"]
        chances = np.broadcast_to(params["prior"], (UNITS,)) if not isinstance(coder, Linear) else None
        if chances is None:
            of = dict(zip(values, [1 - params["prior"].sum(), *params["prior"]], strict=True))
            log_prior = sum(log(of[v]) for v in state)
        else:
            log_prior = float(np.where(s > 0, np.log(chances), np.log(1 - chances)).sum())
        if isinstance(coder, GSC):
            on = s > 0
            S = (noise if noise.ndim == 2 else np.eye(DIMS) * noise**2) / knobs.beta
            psi = (params["psi"] if params["psi"].ndim == 2 else np.diag(params["psi"]))[np.ix_(on, on)]
            C = S + W[on].T @ psi @ W[on]
            r = Y - params["mu"][on] @ W[on]
            likelihood = -0.5 * (
                np.linalg.slogdet(2 * pi * C)[1] + np.einsum("nd,de,ne->n", r, np.linalg.inv(C), r)
            )
            z = np.zeros((len(Y), UNITS))
            z[:, on] = params["mu"][on] + r @ np.linalg.inv(C) @ W[on].T @ psi
            found.append((state, knobs.beta_prior * log_prior + likelihood, z))
        else:
            r = Y - seen(coder, params, state, knobs)
            likelihood = -0.5 * (DIMS * log(2 * pi * noise**2) + (r**2).sum(1) / noise**2)
            joint = knobs.beta_prior * log_prior + knobs.beta * likelihood
            found.append((state, joint, np.broadcast_to(s, (len(Y), UNITS))))
    return found


def by_all_states(
    coder: SparseCoder, params: dict[str, Any], Y: np.ndarray[Any, Any], knobs: Knobs
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Evidence [N] and posterior means [N, H]."""
    _, joints, means = zip(*all_joints(coder, params, Y, knobs), strict=True)
    evidence = np.logaddexp.reduce(joints, axis=0)
    return evidence, np.einsum("sn,snh->nh", np.exp(np.array(joints) - evidence), np.array(means))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_sums_over_states_are_those_over_all_of_them(model: type[SparseCoder], beta: float) -> None:
    coder, params, Y = started(model)
    knobs = Knobs(beta, beta if coder.anneal_prior else 1.0, UNITS, UNITS)
    local = coder._local(params, Y, knobs)
    evidence, means = by_all_states(coder, params, Y, knobs)
    np.testing.assert_allclose(local.evidence, evidence, rtol=0, atol=1e-10)
    np.testing.assert_allclose(local.means, means, rtol=0, atol=1e-10)


@pytest.mark.parametrize("noise", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize("strengths", ["diagonal", "full"])
def test_sums_over_states_with_noise_and_strengths_of_any_form(noise: Any, strengths: Any) -> None:
    _, params, Y = started(GSC)
    coder, rng = GSC(UNITS, noise=noise, strengths=strengths, **EXACT), np.random.default_rng(4)
    roots = rng.standard_normal((DIMS, DIMS)), rng.standard_normal((UNITS, UNITS))
    sigma, psi = (root @ root.T + 0.3 * np.eye(len(root)) for root in roots)
    forms = {"scalar": params["sigma"], "diagonal": np.sqrt(np.diag(sigma)), "full": sigma}
    params |= {"sigma": forms[noise], "psi": psi if strengths == "full" else np.diag(psi)}
    knobs = Knobs(0.5, 1.0, UNITS, UNITS)
    local = coder._local(params, Y, knobs)
    evidence, means = by_all_states(coder, params, Y, knobs)
    np.testing.assert_allclose(local.evidence, evidence, rtol=0, atol=1e-10)
    np.testing.assert_allclose(local.means, means, rtol=0, atol=1e-10)


def slab_rows(sigma: Any, psi: Any) -> Any:
    """Of three units with disjoint components and the covariances given, and their components."""
    rng = np.random.default_rng(5)
    W = np.repeat(np.eye(3), 2, axis=1) * 4.0
    z = rng.multivariate_normal([2.0, 2.0, 2.0], psi, 3000)
    on = rng.random((3000, 3)) < 0.5
    return (on * z) @ W + rng.multivariate_normal(np.zeros(6), sigma, 3000), W


@pytest.mark.parametrize("noise", ["diagonal", "full"])
def test_noise_of_any_form_is_found(noise: Any) -> None:
    sigma = np.diag([0.2, 0.4, 0.6, 0.8, 1.0, 1.2]) ** 2
    if noise == "full":
        sigma[4, 5] = sigma[5, 4] = 0.9
    X, W = slab_rows(sigma, 0.1 * np.eye(3))
    temperature = 1.0 if noise == "full" else None
    coder = GSC(3, noise=noise, temperature=temperature, cut=0.0, max_iter=60, random_state=0).fit(X)
    assert num_found(coder.components_, W) == 3
    found = np.diag(coder.noise_**2) if noise == "diagonal" else coder.noise_
    np.testing.assert_allclose(found, sigma, atol=0.1)
    rows, _ = coder.sample(4000)
    np.testing.assert_allclose(np.cov(rows.T), np.cov(X.T), atol=3.0)  # of up to 30


def test_strengths_that_vary_together_are_found() -> None:
    psi = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]]) * 0.5
    X, W = slab_rows(0.09 * np.eye(6), psi)
    coder = GSC(3, strengths="full", temperature=1.0, max_iter=40, random_state=0).fit(X)
    order = np.abs(coder.components_ @ W.T).argmax(0)
    assert sorted(order) == [0, 1, 2]
    found = coder.variances_[np.ix_(order, order)]
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert np.linalg.eigvalsh(found).min() > 0
    scale = np.sqrt(np.diag(found))
    together = found / np.outer(scale, scale)
    assert together[0, 1] == pytest.approx(0.8, abs=0.1)
    assert np.abs(together[:2, 2]).max() < 0.1


@pytest.mark.parametrize("noise", ["diagonal", "full"])
def test_with_noise_of_any_form_the_free_energy_never_falls(noise: Any) -> None:
    X, _ = bars(GSC, 120, 0, size=3)
    sizes: dict[str, Any] = {"n_candidates": 6, "n_active": 6, "temperature": 1.0, "cut": 0.0}
    found = np.array(GSC(6, noise=noise, max_iter=25, random_state=0, **sizes).fit(X).free_energy_)
    assert np.diff(found).min() > -1e-9 * np.abs(found).max()


def test_full_noise_and_strengths_are_saved_resumed_and_disturbed(tmp_path: Path) -> None:
    X, _ = bars(GSC, 100, 0)
    coder = GSC(10, noise="full", strengths="full", max_iter=4, jitter={"sigma": 1.0}, random_state=0).fit(X)
    save(tmp_path / "coder.safetensors", coder)
    again = load(tmp_path / "coder.safetensors")
    np.testing.assert_array_equal(again.transform(X), coder.transform(X))
    assert coder.noise_.shape == (25, 25)
    assert coder.variances_.shape == (10, 10)


@pytest.mark.parametrize("form", [{"noise": "spherical"}, {"strengths": "scalar"}])
def test_forms_that_do_not_exist_are_refused(form: dict[str, Any]) -> None:
    with pytest.raises(RangeError):
        GSC(4, **form).fit(bars(GSC, 20, 0)[0])


@pytest.mark.parametrize("model", [BSC, TSC, DSC, GSC])
def test_without_annealing_the_free_energy_never_falls(model: type[SparseCoder]) -> None:
    X, _ = bars(model, 120, 0, size=3)
    coder = model(6, n_candidates=6, n_active=6, temperature=1.0, cut=0.0, max_iter=25, random_state=0).fit(X)
    found = np.array(coder.free_energy_)
    assert np.diff(found).min() > -1e-9 * np.abs(found).max()
    assert found[-1] > found[0]


@pytest.mark.parametrize("model", MODELS)
def test_the_bars_are_found(model: type[SparseCoder]) -> None:
    X, W = bars(model, 500, 1)
    coder = model(10, n_active=3, random_state=1).fit(X)
    assert num_found(coder.components_, W) >= 8  # of 10; claims/prosper.py holds it to more, with more rows
    assert np.isfinite(coder.score(X))
    assert coder.transform(X).shape == (500, 10)


@pytest.mark.parametrize("model", MODELS)
def test_scikit_learns_checks_pass(model: type[SparseCoder]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(model(max_iter=4))
        if model is GSC:
            check_estimator(GSC(max_iter=4, noise="full", strengths="full"))


def test_rows_in_float32_give_nearly_the_same() -> None:
    X, _ = bars(BSC, 200, 0)
    wide = BSC(10, max_iter=10, random_state=0).fit(X)
    narrow = BSC(10, max_iter=10, random_state=0).fit(X.astype(np.float32))
    np.testing.assert_allclose(narrow.components_, wide.components_, atol=1e-3)
    assert narrow.transform(X.astype(np.float32)).dtype == np.float32


@pytest.mark.multiproc
@pytest.mark.parametrize("model", [GSC])
def test_workers_learn_what_one_does(model: type[SparseCoder]) -> None:
    X, _ = bars(model, 203, 0)
    one, two = (model(10, max_iter=6, random_state=0, n_jobs=n).fit(X) for n in (1, 2))
    np.testing.assert_allclose(two.components_, one.components_, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose([two.noise_, *two.prior_], [one.noise_, *one.prior_], rtol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_active": 5, "n_candidates": 4},
        {"n_candidates": 11},
        {"n_active": 0},
        {"temperature": 0.5},
        {"temperature": [(0.5, 2.0), (0.2, 1.0)]},
        {"partial": 0.0},
        {"partial": 1.5},
        {"jitter": {"pi": 0.1}},
        {"jitter": {"W": -0.1}},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RangeError):
        BSC(10, **settings).fit(bars(BSC, 20, 0)[0])


@pytest.mark.parametrize("values", [(1.0, 2.0), (0.0,), (0.0, 1.0, 1.0)])
def test_values_without_zero_or_with_twins_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(RangeError, match="values"):
        DSC(4, values=values).fit(bars(DSC, 20, 0)[0])


@pytest.mark.parametrize(("name", "form"), [("noise", "round"), ("strengths", "scalar")])
def test_forms_that_are_none_are_refused(name: str, form: str) -> None:
    with pytest.raises(RangeError, match=f"{name}='{form}'"):
        GSC(4, **{name: form}).fit(bars(GSC, 20, 0)[0])


@pytest.mark.parametrize("model", MODELS)
def test_rows_of_zeros_and_more_units_than_causes_leave_finite_parameters(model: type[SparseCoder]) -> None:
    X = np.concatenate([np.zeros((20, 9)), bars(model, 30, 0, size=3)[0]])
    for data in (X, np.zeros((12, 9))):
        coder = model(12, max_iter=8, random_state=0).fit(data)
        for found in (
            coder.components_,
            coder.prior_,
            [coder.noise_],
            coder.transform(data),
            coder.free_energy_,
        ):
            assert np.isfinite(found).all()


@pytest.mark.parametrize("model", MODELS)
def test_samples_have_the_models_form(model: type[SparseCoder]) -> None:
    coder = model(10, max_iter=3, random_state=0).fit(bars(model, 100, 0)[0])
    rows, units = coder.sample(300)
    assert (rows.shape, units.shape) == ((300, 25), (300, 10))
    if model in (BSC, MCA, MMCA):
        assert set(np.unique(units)) <= {0.0, 1.0}
    assert np.isfinite(rows).all()


def test_a_part_at_a_time_comes_near_the_whole() -> None:
    X, _ = bars(BSC, 1200, 2)
    coder = BSC(10, max_iter=20, random_state=0).fit(X[:300])
    before = coder.score(X)
    for begin in range(0, 1200, 300):
        coder.partial_fit(X[begin : begin + 300])
    assert coder.score(X) >= before
    fresh = BSC(10, random_state=0)
    for _ in range(3):
        fresh.partial_fit(X[:300])
    assert np.isfinite(fresh.components_).all()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("num", [1, 5, 11, 12])
@pytest.mark.parametrize("outlier", [1.0, 1e9])
def test_a_cut_gives_the_sums_of_the_rows_of_largest_evidence(
    model: type[SparseCoder], num: int, outlier: float
) -> None:
    """Also where those of the others are so large that taking them off would leave no digits."""
    coder, params, Y = started(model)
    Y[3] *= outlier
    knobs = Knobs(1.0, 1.0, UNITS, UNITS)
    evidence = coder._local(params, Y, knobs).evidence
    rows = np.sort(np.argsort(evidence)[-num:])
    expected = Shard(coder, Y[rows]).statistics(params, knobs).arrays
    shard = Shard(coder, Y)
    shard.evidence(params, knobs)
    for _ in range(2):  # it may be asked again
        found = shard.cut(order_bits(evidence[rows]).min())
        assert float(found["kept"]) == num
        np.testing.assert_allclose(found["evidence"], evidence.sum(), rtol=1e-12)
        for name in expected.keys() - {"evidence"}:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, atol=1e-12, err_msg=name)


def test_a_shard_of_which_nothing_is_kept_still_tells_its_evidence() -> None:
    coder, params, Y = started(BSC)
    shard = Shard(coder, Y)
    with pytest.raises(InvariantError, match="evidence is not known"):
        shard.cut(np.uint64(0))
    whole = shard.statistics(params, Knobs(1.0, 1.0, UNITS, UNITS))
    shard.evidence(params, Knobs(1.0, 1.0, UNITS, UNITS))
    found = shard.cut(np.uint64(2**64 - 1))
    assert found["evidence"] == whole["evidence"]
    assert found.arrays.keys() == whole.arrays.keys()
    assert not any(found[name].any() for name in found.arrays.keys() - {"evidence"})


@pytest.mark.parametrize("model", [BSC, DSC, GSC])
def test_an_interrupted_fit_ends_as_it_would_have(model: type[SparseCoder], tmp_path: Path) -> None:
    X, _ = bars(model, 100, 0)
    file = tmp_path / "coder.safetensors"
    noise: dict[str, Any] = {"partial": 0.8, "jitter": {"W": 0.5}}
    coder = model(10, max_iter=6, random_state=0, **noise)

    def stop(phase: str, done: int, total: int) -> None:
        save(file, coder)
        if done == 3:
            raise KeyboardInterrupt

    coder.progress = stop
    with pytest.raises(KeyboardInterrupt):
        coder.fit(X)
    again = load(file).resume(X)
    whole = model(10, max_iter=6, random_state=0, **noise).fit(X)
    np.testing.assert_array_equal(again.components_, whole.components_)
    assert again.free_energy_ == whole.free_energy_


def test_what_is_no_coder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    file.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="no sparse coder"):
        load(file)
    with pytest.raises(CheckpointError):
        load(tmp_path / "absent")


@pytest.mark.parametrize("model", MODELS)
def test_the_most_probable_states_are_those_of_all(model: type[SparseCoder]) -> None:
    coder, params, Y = started(model)
    coder.fit(Y)  # so that it has learnt something; what is asked for is of the parameters below
    coder._learned(params)
    values = (0.0, *coder._values())
    told = coder.infer(Y, n_states=len(values) ** UNITS + 1)
    np.testing.assert_allclose(told.probabilities.sum(1), 1.0, atol=1e-12)
    assert (np.diff(told.probabilities, axis=1) <= 0).all()
    assert (told.probabilities[:, -1] == 0).all()  # there is no such state
    joints = all_joints(coder, params, Y, coder._knobs(1.0))
    whole = np.logaddexp.reduce([joint for _, joint, _ in joints], axis=0)
    shares = {state: np.exp(joint - whole) for state, joint, _ in joints}
    active = sum(np.outer(share, np.array(state) != 0) for state, share in shares.items())
    np.testing.assert_allclose(told.active, active, atol=1e-10)
    for n in range(ROWS):
        best = tuple(float(v) for v in told.states[n, 0])
        assert told.probabilities[n, 0] == pytest.approx(shares[best][n], abs=1e-10)
        assert told.probabilities[n, 0] == pytest.approx(
            max(share[n] for share in shares.values()), abs=1e-10
        )
    np.testing.assert_array_equal(coder.infer(Y, n_states=3).states, told.states[:, :3])


def test_rows_that_need_more_units_get_them() -> None:
    W = np.eye(6) * 10
    coder = BSC(6, n_candidates=3, n_active=2, random_state=0).fit(bars(BSC, 20, 0, size=3)[0][:, :6])
    coder._learned({"W": W, "sigma": np.float64(1.0), "prior": np.array([0.2])})
    units = np.array([[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], float)
    few, most, some = (coder.infer(units @ W, max_active=most) for most in (None, 6, 4))
    assert few.n_active.tolist() == [2, 2, 2]
    np.testing.assert_array_equal(most.states[:, 0], units)
    assert most.n_active.tolist() == [2, 5, 6]
    assert most.n_candidates.tolist() == [3, 6, 6]
    assert some.n_active.tolist() == [2, 4, 4]
    with pytest.raises(RangeError):
        coder.infer(units @ W, n_states=0)


def test_ternary_units_part_only_below_the_temperature_at_which_several_directions_grow() -> None:
    X, _ = bars(TSC, 500, 0)
    dimensions = {}
    for temperature in (5.0, 2.0):
        coder = TSC(10, n_active=3, temperature=temperature, cut=0.0, max_iter=10, random_state=0).fit(X)
        energy = np.linalg.svd(coder.components_, compute_uv=False) ** 2
        dimensions[temperature] = energy.sum() ** 2 / (energy**2).sum()  # how many are in use
    assert dimensions[5.0] < 1.1
    assert dimensions[2.0] > 4


NOISY: dict[str, Any] = {
    "partial": ((0.0, 0.4), (1.0, 0.9)), "jitter": {"W": ((0.0, 1.0), (0.5, 0.0)), "prior": 0.3, "sigma": 0.5}
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_noise_and_a_part_of_the_rows_leave_finite_parameters_and_come_again_by_seed(
    model: type[SparseCoder],
) -> None:
    X, _ = bars(model, 200, 0)
    one, again, other = (model(10, max_iter=8, random_state=s, **NOISY).fit(X) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.components_, again.components_)
    assert (one.components_ != other.components_).any()
    assert np.isfinite([*one.free_energy_, one.noise_, *one.prior_, *one.components_.ravel()]).all()


def test_the_part_of_the_rows_does_not_depend_on_how_they_are_shared_out() -> None:
    X, _ = bars(BSC, 101, 0)
    coder, params, _ = started(BSC)
    params["W"] = np.random.default_rng(0).standard_normal((UNITS, 25))
    knobs = coder._knobs(1.0)
    for num in (1, 40, 101):
        part = Part((0, 3), num, 101)
        whole = coder.shard(X).statistics(params, knobs, part)
        four = [coder.shard(X[rows], rows.start) for rows in parts(4, 101)]
        total = reduced([shard.statistics(params, knobs, part) for shard in four])
        assert float(whole["kept"]) == float(total["kept"]) == num
        np.testing.assert_allclose(total["outer"], whole["outer"], rtol=1e-12)


def test_the_cut_is_of_the_part() -> None:
    coder, params, Y = started(BSC)
    shard, part, knobs = Shard(coder, Y), Part((0, 0), 7, ROWS), Knobs(1.0, 1.0, UNITS, UNITS)
    rows = np.flatnonzero(part.mask())
    evidence = coder._local(params, Y[rows], knobs).evidence
    for num in (2, 5):
        shard.evidence(params, knobs, part)
        found = shard.cut(np.sort(order_bits(evidence))[-num])
        kept = rows[np.argsort(evidence)[-num:]]
        assert float(found["kept"]) == num
        np.testing.assert_allclose(found["evidence"], evidence.sum(), rtol=1e-12)
        np.testing.assert_allclose(found["outer"], Shard(coder, Y[kept]).statistics(params, knobs)["outer"])


def test_components_are_those_of_least_squares_also_where_units_are_alike() -> None:
    rng = np.random.default_rng(0)
    units, rows = rng.standard_normal((30, 6)), rng.standard_normal((30, 5))
    for alike in (False, True):
        units[:, 5] = units[:, 4] if alike else units[:, 5]
        found = solved(units.T @ units, units.T @ rows)
        np.testing.assert_allclose(found, np.linalg.pinv(units) @ rows, atol=1e-10)
