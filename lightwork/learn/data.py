"""Rows to learn from that need no download: bars whose causes are known, digits, patches of photographs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import MissingExtraError, RangeError
from lightwork.learn.sparse import BSC, DSC, GSC, MCA, MMCA, TSC
from lightwork.learn.sparse.truncated_em import SparseCoder

MODELS = (BSC, TSC, DSC, MCA, MMCA, GSC)
Floats = NDArray[Any]


def bars(
    model: type[SparseCoder], num: int, seed: int, size: int = 5, rate: float = 0.2
) -> tuple[Floats, Floats]:
    """Rows [num, size²] as the model makes them, with noise of 2, and the components [2 size, size²]."""
    rng = np.random.default_rng(seed)
    W: Floats = np.zeros((2 * size, size, size))
    for i in range(size):
        W[i, i, :] = W[size + i, :, i] = 10.0
    W = W.reshape(2 * size, -1)
    if model is MMCA:
        W *= rng.choice([-1.0, 1.0], size=(2 * size, 1))
    on = (rng.random((num, 2 * size)) < rate).astype(float)
    strength: dict[Any, Any] = {
        TSC: rng.choice([-1.0, 1.0], size=on.shape),
        DSC: rng.choice([1.0, 2.0], size=on.shape),
        GSC: 1.0 + 0.3 * rng.standard_normal(on.shape),
    }
    units = on * strength.get(model, 1.0)
    if model in (MCA, MMCA):
        shown = units[:, :, None] * W
        rows = np.take_along_axis(shown, np.abs(shown).argmax(1)[:, None], 1)[:, 0]
    else:
        rows = units @ W
    return rows + 2.0 * rng.standard_normal(rows.shape), W


def num_found(components: Floats, W: Floats) -> int:
    """How many of W's rows are some component's direction, within a cosine of 0.9, each by one of its own."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (components, W)]
    cosine = np.abs(unit[0] @ unit[1].T)
    return len({int(i) for i, most in zip(cosine.argmax(0), cosine.max(0), strict=True) if most > 0.9})


def rows_of(name: str, model: type[SparseCoder], seed: int) -> Floats:
    """Rows [N, D] by name: bars, digits (scikit-learn's, 8 x 8), photos (its two, 8 x 8 patches), or a .csv.

    Raises RangeError for another name, or a file that holds no table of numbers.
    """
    if name == "bars":
        return bars(model, 1000, seed)[0]
    if name == "digits":
        from sklearn.datasets import load_digits

        digits: Floats = load_digits().data / 4.0
        return digits
    if name == "photos":
        return _patches(seed)
    try:
        rows: Floats = np.loadtxt(name, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise RangeError(
            f"{name[:200]} is no table of numbers: {error}", expected="bars, digits, photos, or a .csv file"
        ) from error
    return rows


def _patches(seed: int, num: int = 4000, size: int = 8) -> Floats:
    """Grey patches without their mean, in units of their deviation."""
    from sklearn.datasets import load_sample_images
    from sklearn.feature_extraction.image import extract_patches_2d

    try:
        photos = load_sample_images().images
    except ImportError:
        raise MissingExtraError("Pillow", "learn") from None
    grey = [image.mean(2) for image in photos]
    found = [
        extract_patches_2d(image, (size, size), max_patches=num // 2, random_state=seed) for image in grey
    ]
    rows: Floats = np.concatenate(found).reshape(-1, size * size)
    rows -= rows.mean(1, keepdims=True)
    rows /= rows.std()
    return rows
