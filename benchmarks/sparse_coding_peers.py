"""Is an iteration of sparse coding what the original library's is, and how much sooner? And what does a fit
take, and leave out, beside scikit-learn's dictionaries?

    python benchmarks/sparse_coding_peers.py --python FOLDER/prosper/bin/python --source CHECKOUT
    python benchmarks/sparse_coding_peers.py --patches

FOLDER is what benchmarks/peers/install.py made, CHECKOUT that of github.com/ml-uol/prosper. Same rows, same
parameters, float64, CPU seconds of one thread, both sides in turns, each at its best of a few. The
original's TSC cannot be constructed.

--patches: of scikit-learn's two photographs, without their mean; and what is above it beside what is below,
which is positive, as MCA has it. Half are learnt from; an error is what is left of the other half's squares.
Codes are posterior means, of MCA the units that are more probable than not; of dictionaries, orthogonal
matching pursuit with as many real numbers as a state has active units. By pursuit, all components are judged
alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning, SparseCoder

from lightwork.learn.data import rows_of
from lightwork.learn.shards import Here, alone
from lightwork.learn.sparse import BSC, DSC, GSC, MCA, MMCA
from lightwork.runtime.clock import cpu_s

TIMES = 3
WORKER = Path(__file__).parent / "peers" / "run_prosper.py"
VALUES = (0.0, 1.0, 2.0)
ACTIVE = 4
"""Units of a state, and numbers of a dictionary's code."""


class Size(NamedTuple):
    """rows: as many as the original does in seconds."""

    dims: int
    units: int
    candidates: int
    gamma: int
    rows: int


SIZES = {
    "bars": Size(25, 10, 8, 5, 400),
    "patches": Size(144, 100, 8, 4, 600),
    "large": Size(256, 200, 10, 5, 600),
    "paper": Size(1024, 400, 10, 5, 450),
}
MODELS = {"BSC": BSC, "DSC": DSC, "MCA": MCA, "MMCA": MMCA, "GSC": GSC}


def coder_of(name: str, size: Size) -> Any:
    more = {"values": VALUES} if name == "DSC" else {}
    return MODELS[name](
        size.units, n_candidates=size.candidates, n_active=size.gamma, temperature=1.0, cut=0.0, **more
    )


def problem(name: str, size: Size) -> tuple[dict[str, Any], Any]:
    """Parameters with a few strong entries in each component, and rows made of them."""
    rng = np.random.default_rng(0)
    W = 4.0 * (rng.random((size.units, size.dims)) < 5 / 25) + 0.1 + 0.1 * rng.random((size.units, size.dims))
    if name == "MMCA":
        W *= rng.choice([-1.0, 1.0], size=W.shape)
    params: dict[str, Any] = {"W": W, "sigma": np.float64(1.0), "prior": np.array([2.0 / size.units])}
    on = (rng.random((size.rows, size.units)) < 2.0 / size.units).astype(float)
    if name == "DSC":
        params["prior"] = np.array([1.2, 0.8]) / size.units
    if name == "GSC":
        prior = np.full(size.units, 2.0 / size.units)
        params |= {"prior": prior, "mu": np.full(size.units, 1.0), "psi": np.full(size.units, 0.3)}
    shown = on[:, :, None] * W if name in ("MCA", "MMCA") else None
    mean = on @ W if shown is None else np.take_along_axis(shown, np.abs(shown).argmax(1)[:, None], 1)[:, 0]
    return params, mean + rng.standard_normal(mean.shape)


def job(name: str, size: Size, params: dict[str, Any], rows: Any, place: Path) -> None:
    prior, given = params["prior"], {"W": params["W"].T, "sigma": params["sigma"], "pi": params["prior"][0]}
    if name == "DSC":
        given["pi"] = np.concatenate([[1.0 - prior.sum()], prior])
    if name == "GSC":
        given = {
            "W": params["W"].T, "pi": prior, "mu": params["mu"], "psi_sq": np.diag(params["psi"]),
            "sigma_sq": params["sigma"] ** 2,
        }  # fmt: skip
    values = {f"param_{key}": value for key, value in given.items()}
    sizes = {key: value for key, value in size._asdict().items() if key != "rows"}
    np.savez(place, rows=rows, model=name, times=1, values=VALUES, **sizes, **values)


def ours(coder: Any, params: dict[str, Any], rows: Any) -> tuple[float, Any, dict[str, Any]]:
    """CPU seconds of an iteration, evidence relative to what ProSper leaves out, and the new parameters."""
    knobs = coder._knobs(1.0)
    begin = cpu_s()
    total = alone(Here([coder.shard(rows)]).run("statistics", params, knobs))
    new = coder._update(params, total, knobs)
    seconds = cpu_s() - begin
    return seconds, coder._local(params, rows, knobs, np.ones(len(rows), bool)).evidence, dict(new)


def compare(name: str, label: str, python: Path, source: Path) -> dict[str, Any]:
    size = SIZES[label]
    coder, (params, rows) = coder_of(name, size), problem(name, size)
    ours(coder, params, rows)  # compiles
    mine, theirs, new, evidence = [], [], {}, np.zeros(0)
    with tempfile.TemporaryDirectory() as folder:
        job(name, size, params, rows, Path(folder) / "job.npz")
        command = [python, WORKER, source, f"{folder}/job.npz", f"{folder}/out.npz"]
        for _ in range(TIMES):
            subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
            for _ in range(TIMES):
                seconds, evidence, new = ours(coder, params, rows)
                mine.append(seconds)
            with np.load(f"{folder}/out.npz") as answer:
                out = {key: answer[key] for key in answer}
            theirs.append(float(out["seconds"].min()))
    seen = (new["W"] != params["W"]).any(1)  # a unit in no row keeps its component, and is zero there
    return {
        "model": name, "size": label, **size._asdict(), "ours_us": 1e6 * min(mine) / size.rows,
        "theirs_us": 1e6 * min(theirs) / size.rows, "ratio": min(theirs) / min(mine),
        "evidence": _apart(name, params, size, evidence, out),
        "W": _largest((new["W"] - out["new_W"].T)[seen]),
    }  # fmt: skip


def _apart(name: str, params: dict[str, Any], size: Size, evidence: Any, out: dict[str, Any]) -> float | None:
    """Largest difference of log-evidence; the original leaves constants out."""
    if len(out["evidence"]) != len(evidence) or name == "GSC":
        return None
    constant = -size.dims * np.log(2 * np.pi * float(params["sigma"]) ** 2) / 2
    if name != "DSC":
        constant += size.units * np.log1p(-float(params["prior"].sum()))
    return _largest(evidence - constant - out["evidence"])


def _largest(difference: Any) -> float:
    return float(np.abs(difference).max())


# -- beside scikit-learn


def patches() -> dict[str, Any]:
    """Rows by name: as they are [4000, 64], and [4000, 128] what is above the mean beside what is below."""
    rows = rows_of("photos", BSC, seed=0)
    return {"patches": rows, "on, off": np.concatenate([np.maximum(rows, 0), np.maximum(-rows, 0)], axis=1)}


def learners(units: int) -> dict[str, Any]:
    """By name, in the order of the report."""
    sizes = {"n_candidates": 8, "n_active": ACTIVE, "random_state": 0}
    omp = {"transform_algorithm": "omp", "transform_n_nonzero_coefs": ACTIVE, "random_state": 0}
    return {
        **{name: MODELS[name](units, **sizes) for name in ("BSC", "MCA", "GSC")},
        "DictionaryLearning": DictionaryLearning(units, fit_algorithm="cd", max_iter=50, **omp),
        "MiniBatchDictionaryLearning": MiniBatchDictionaryLearning(units, **omp),
    }


def left_over(again: Any, rows: Any) -> float:
    return float(((again - rows) ** 2).sum() / (rows**2).sum())


def judged(learner: Any, rows: Any) -> dict[str, float]:
    """error: by the learner's own codes, of so many active units a row. omp: by pursuit in its components."""
    codes, W = learner.transform(rows), learner.components_
    if isinstance(learner, MCA):
        codes = codes > 0.5
        again = np.stack([(code[:, None] * W).max(0) for code in codes])
    else:
        again = codes @ W
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    pursuit = SparseCoder(unit, transform_algorithm="omp", transform_n_nonzero_coefs=ACTIVE)
    return {
        "error": left_over(again, rows),
        "active": float((np.abs(codes) > 1e-3).sum(1).mean()),
        "omp": left_over(pursuit.transform(rows) @ unit, rows),
    }


def beside_dictionaries(units: int) -> list[dict[str, Any]]:
    """Fits of all learners, in turns, each at its best of two."""
    found = []
    for label, rows in patches().items():
        best_s: dict[str, float] = {}
        fitted: dict[str, Any] = {}
        for _ in range(2):
            for name, learner in learners(units).items():
                begin = cpu_s()
                fitted[name] = learner.fit(rows[::2])
                best_s[name] = min(best_s.get(name, inf), cpu_s() - begin)
        for name, learner in fitted.items():
            row = {"learner": name, "rows": label, "fit_s": best_s[name], **judged(learner, rows[1::2])}
            found.append(row)
            print(
                f"{label:8} {name:28} fit {row['fit_s']:6.2f} s, error {row['error']:.3f} with "
                f"{row['active']:4.1f} active, {row['omp']:.3f} by pursuit",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", type=Path, help="of the original's environment")
    parser.add_argument("--source", type=Path, help="of the original")
    parser.add_argument("--models", nargs="*", default=[*MODELS])
    parser.add_argument("--sizes", nargs="*", default=[*SIZES])
    parser.add_argument("--patches", action="store_true", help="beside scikit-learn's dictionaries instead")
    parser.add_argument("--units", type=int, default=64, help="of --patches")
    parser.add_argument("--json", type=Path, help="write lines of JSON here")
    options = parser.parse_args()
    if options.patches:
        found = beside_dictionaries(options.units)
    elif options.python is None or options.source is None:
        parser.error("--python and --source of the original, or --patches")
    else:
        found = beside_the_original(options.models, options.sizes, options.python, options.source)
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def beside_the_original(
    models: list[str], sizes: list[str], python: Path, source: Path
) -> list[dict[str, Any]]:
    found = []
    for name in models:
        for label in sizes:
            row = compare(name, label, python, source)
            found.append(row)
            apart = "not compared" if row["evidence"] is None else f"{row['evidence']:.1e}"
            print(
                f"{name:5} {label:8} {row['ours_us']:9.2f} us a row, ProSper {row['theirs_us']:9.1f}: "
                f"{row['ratio']:6.1f}x   evidence apart {apart}, W {row['W']:.1e}",
                flush=True,
            )
    return found


if __name__ == "__main__":
    main()
