"""A cost fitted to steps measured on this machine, for predicting other loads of the same model here.

A step's time is a sum of non-negative costs per feature (a constant, rows, sequences, keys read, ...),
fitted by least squares on relative errors, in pieces over the number of rows: small and large steps are
bound by different things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import LightworkError, SpecError

Features = Mapping[str, float]
Sample = tuple[Features, float]
"""Features of a step, and its seconds."""
KNEES = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
MIN_PER_PIECE = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Costs for steps of at most `upto` rows: seconds per unit of each feature."""

    upto: float
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Fitted pieces, ascending.

    error: median relative error on the samples. num_samples: how many there were.
    """

    pieces: tuple[Piece, ...]
    error: float
    num_samples: int
    machine: str = ""

    def predict(self, features: Features) -> float:
        """Seconds of a step with these features."""
        piece = next((p for p in self.pieces if features["rows"] <= p.upto), self.pieces[-1])
        return sum(piece.seconds.get(name, 0.0) * value for name, value in features.items())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """The inverse of to_dict. Raises SpecError."""
        try:
            pieces = tuple(Piece(upto=float(p["upto"]), seconds=dict(p["seconds"])) for p in data["pieces"])
            rest = {k: data[k] for k in ("error", "num_samples", "machine")}
            return cls(pieces=pieces, **rest)
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"this is not a calibration: {error!r}", expected="what to_dict gives") from error


def fit(samples: Sequence[Sample], machine: str = "") -> Calibration:
    """Fit (features, seconds) samples.

    Every sample needs the feature "rows". Raises LightworkError if there are few.
    """
    if len(samples) < MIN_PER_PIECE:
        raise LightworkError(
            f"{len(samples)} measured steps are too few to fit",
            expected=f"at least {MIN_PER_PIECE}",
            fix="run longer",
        )
    ordered = sorted(samples, key=lambda s: s[0]["rows"])
    groups: list[list[Sample]] = [[]]
    for sample in ordered:
        knee = next(
            (k for k in KNEES if groups[-1] and groups[-1][-1][0]["rows"] <= k < sample[0]["rows"]), None
        )
        if knee is not None and len(groups[-1]) >= MIN_PER_PIECE:
            groups.append([])
        groups[-1].append(sample)
    if len(groups) > 1 and len(groups[-1]) < MIN_PER_PIECE:
        groups[-2:] = [groups[-2] + groups[-1]]
    pieces = tuple(Piece(upto=group[-1][0]["rows"], seconds=_fit_piece(group)) for group in groups)
    fitted = Calibration(pieces=pieces, error=0.0, num_samples=len(samples), machine=machine)
    errors = [abs(fitted.predict(f) / s - 1.0) for f, s in samples]
    return Calibration(
        pieces=pieces, error=float(np.median(errors)), num_samples=len(samples), machine=machine
    )


def _fit_piece(samples: Sequence[Sample]) -> dict[str, float]:
    """Two rounds: the second without the samples whose error is far outside the others'."""
    names = sorted({name for features, _ in samples for name in features})
    a = np.array([[features.get(name, 0.0) for name in names] for features, _ in samples])
    seconds = np.array([s for _, s in samples])
    costs = _non_negative(a / seconds[:, None], np.ones(len(seconds)))
    errors = np.abs(a @ costs / seconds - 1.0)
    keep = errors <= max(3.0 * float(np.median(errors)), 0.05)
    if keep.sum() >= len(names):
        costs = _non_negative(a[keep] / seconds[keep, None], np.ones(int(keep.sum())))
    return {name: float(cost) for name, cost in zip(names, costs, strict=True)}


def _non_negative(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-negative least squares by coordinate descent; there are few features, so it is quick."""
    scale = np.linalg.norm(a, axis=0)
    scale[scale == 0] = 1.0
    q, target = (a / scale).T @ (a / scale), (a / scale).T @ b
    x = np.zeros(len(target))
    for _ in range(2000):
        before = x.copy()
        for i in range(len(x)):
            if q[i, i] > 0:
                x[i] = max(0.0, x[i] + (target[i] - q[i] @ x) / q[i, i])
        if np.abs(x - before).max() < 1e-12:
            break
    return np.asarray(x / scale)
