"""Slices of a model, put together again, are the model: every family, stages times tensor-parallel ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightwork import models
from lightwork.errors import CheckpointError, SpecError
from lightwork.kernels.rows import Rows
from lightwork.models.slices import Slice, slices
from lightwork.models.stage import Stage, open_stage
from lightwork.testing import FAMILIES, text_logits

Make = Callable[..., Path]
TEXT = np.random.default_rng(0).integers(0, 320, 60).tolist()


class Together:
    """Sums over threads that stand for the ranks of a stage."""

    def __init__(self, ranks: int) -> None:
        self._all = threading.Barrier(ranks)
        self._parts: dict[int, Tensor] = {}

    def reduce(self, rank: int) -> Callable[[Tensor], Tensor]:
        def sum_parts(part: Tensor) -> Tensor:
            self._parts[rank] = part
            self._all.wait()
            whole = torch.stack([self._parts[r] for r in sorted(self._parts)]).sum(0)
            self._all.wait()
            return whole

        return sum_parts


def open_all(folder: Path, stages: int, ranks: int) -> list[list[Stage]]:
    found = []
    for row in slices(models.read_shape(str(folder)), stages, ranks):
        together = Together(ranks)
        found.append(
            [
                open_stage(folder, mine, dtype="float32", device="cpu", reduce=together.reduce(mine.rank))
                for mine in row
            ]
        )
    return found


def logits_of(grid: list[list[Stage]], tokens: list[int]) -> np.ndarray:
    rows = Rows.of_text(np.array(tokens, np.int64), len(tokens))
    x: Tensor | None = None
    for row in grid:
        parts: list[Tensor | None] = [None] * len(row)

        def compute(stage: Stage, x: Tensor | None, parts: list[Tensor | None]) -> None:
            parts[stage.mine.rank] = stage.forward(rows, stage.new_kv(1, len(tokens)), x)

        threads = [threading.Thread(target=compute, args=(stage, x, parts)) for stage in row]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        x = parts[0]
    return torch.cat([part for part in parts if part is not None], 1).numpy()


@pytest.mark.parametrize(("stages", "ranks"), [(1, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_whole(checkpoint: Make, family: str, stages: int, ranks: int) -> None:
    folder = checkpoint(family)
    grid = open_all(folder, stages, ranks)
    whole = text_logits(models.load(str(folder)), TEXT)
    np.testing.assert_allclose(logits_of(grid, TEXT), whole, atol=1e-5 * np.abs(whole).max(), rtol=0)


@pytest.mark.parametrize(
    "config", [{"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}], ids="-".join
)
def test_biases_are_added_once_and_a_tied_head_is_cut(checkpoint: Make, config: dict[str, bool]) -> None:
    folder = checkpoint("llama", **config)
    whole = text_logits(models.load(str(folder)), TEXT)
    for stages, ranks in ((1, 2), (2, 2)):
        got = logits_of(open_all(folder, stages, ranks), TEXT)
        np.testing.assert_allclose(got, whole, atol=1e-5 * np.abs(whole).max(), rtol=0)


def test_each_rank_has_its_share_only(checkpoint: Make) -> None:
    folder = checkpoint("llama")
    whole = models.load(str(folder)).weights
    grid = open_all(folder, 3, 2)
    norms = sum(layer.norm1.nbytes + layer.norm2.nbytes for layer in whole.layers) + whole.norm.nbytes
    assert sum(stage.weights.nbytes for row in grid for stage in row) == whole.nbytes + norms
    assert max(stage.weights.nbytes for row in grid for stage in row) < whole.nbytes / 3


def test_a_vocabulary_need_not_divide(checkpoint: Make) -> None:
    folder = checkpoint("llama", vocab_size=323)
    whole = text_logits(models.load(str(folder)), TEXT)
    got = logits_of(open_all(folder, 1, 2), TEXT)
    np.testing.assert_allclose(got, whole, atol=1e-5 * np.abs(whole).max(), rtol=0)


@pytest.mark.parametrize(
    ("config", "stages", "ranks", "said"),
    [
        ({}, 4, 1, "4 pipeline stages of 3 layers"),
        ({}, 0, 1, "0 pipeline stages"),
        ({}, 1, 4, "num_kv_heads of .* is 2"),
        ({"intermediate_size": 49}, 1, 2, "ffn_size of .* is 49"),
    ],
)
def test_shapes_that_do_not_divide_are_refused(
    checkpoint: Make, config: dict[str, int], stages: int, ranks: int, said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        slices(models.read_shape(str(checkpoint("llama", **config))), stages, ranks)


def test_a_slice_refuses_weights_that_no_rank_has_a_place_for(checkpoint: Make, tmp_path: Path) -> None:
    for file in checkpoint("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.2.self_attn.q_proj.bias"] = torch.ones(32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no place for: model.layers.2.self_attn.q_proj.bias"):
        open_stage(tmp_path, Slice(first=0, last=1), dtype="float32", device="cpu")
