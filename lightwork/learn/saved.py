"""Fitted sparse coders as files: safetensors, with their settings in its header, whole at any instant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lightwork import home
from lightwork.errors import CheckpointError
from lightwork.learn import sparse
from lightwork.learn.sparse.truncated_em import SparseCoder


def save(file: Path, coder: SparseCoder) -> None:
    """Write a coder that has learnt something, also in the middle of a fit: `resume` goes on from there.

    Raises LightworkError if the file cannot be written; one that was there stays whole until it is replaced.
    """
    from safetensors.numpy import save_file

    settings = {name: value for name, value in coder.get_params().items() if name != "progress"}
    told = {
        "model": type(coder).__name__,
        "settings": json.dumps(settings, default=list),
        "free_energy": json.dumps(coder.free_energy_),
    }
    params = {name: np.array(value, order="C") for name, value in coder._params.items()}
    home.save(file, lambda part: save_file(params, part, metadata=told))


def load(file: Path) -> SparseCoder:
    """Raises CheckpointError for a file that `save` did not write."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            told = opened.metadata() or {}
            params: dict[str, Any] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        model = {name: getattr(sparse, name) for name in sparse.__all__}[told["model"]]
        coder: SparseCoder = model(**json.loads(told["settings"]))
        coder.free_energy_ = json.loads(told["free_energy"])
        coder.n_features_in_ = params["W"].shape[1]
        coder._seen = None
        coder._learned(params)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{file} is no sparse coder: {error}",
            expected="a file that `lightwork learn fit --save` wrote",
            fix=f"lightwork learn fit bars --save {file}",
        ) from error
    return coder
