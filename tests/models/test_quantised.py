"""GPTQ and AWQ folders: the matrices that their published layouts mean, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightwork import models
from lightwork.errors import CheckpointError
from lightwork.models.checkpoint import open_checkpoint
from lightwork.models.codes import Codes
from lightwork.testing import text_logits

Make = Callable[..., Path]
State = dict[str, torch.Tensor]
GROUP = 16
TOKENS = np.random.default_rng(0).integers(0, 256, 40).tolist()
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "gptq": GPTQ,
    "gptq-8": GPTQ | {"bits": 8},
    "gptq-v2": GPTQ | {"checkpoint_format": "gptq_v2", "sym": False},
    "gptq-whole-rows": GPTQ | {"group_size": -1},
    "awq": AWQ,
}
NAME = "model.layers.0.self_attn.q_proj"


def pack(fields: np.ndarray, bits: int, nibbles: list[int]) -> np.ndarray:
    """Fields [..., n] into int32 words along the last axis; nibbles: the field in each slot of a word."""
    per_word = 32 // bits
    grouped = fields.reshape(*fields.shape[:-1], -1, per_word).astype(np.uint64)
    words = np.zeros(grouped.shape[:-1], np.uint64)
    for slot, field in enumerate(nibbles):
        words |= grouped[..., field] << np.uint64(bits * slot)
    return words.astype(np.uint32).view(np.int32)


def packed_layer(
    w_NK: torch.Tensor, config: dict[str, Any], random: np.random.Generator
) -> tuple[State, Any]:
    """A layer in the layout of its packer, and the matrix [N, K] that it means, one weight at a time."""
    outputs, inputs = w_NK.shape
    bits, awq = config["bits"], config["quant_method"] == "awq"
    group = inputs if config["group_size"] == -1 else config["group_size"]
    codes_KN = random.integers(0, 2**bits, (inputs, outputs))
    zeros_GN = random.integers(1, 2**bits, (inputs // group, outputs))
    scales_GN = random.uniform(0.01, 0.03, (inputs // group, outputs)).astype(np.float16)
    meant = np.empty((outputs, inputs), np.float32)
    for k in range(inputs):
        g = k // group
        meant[:, k] = scales_GN[g].astype(np.float32) * (codes_KN[k] - zeros_GN[g])
    straight = list(range(32 // bits))
    if awq:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        qweight, qzeros = pack(codes_KN, 4, order), pack(zeros_GN, 4, order)
    else:
        stored = zeros_GN - (0 if config.get("checkpoint_format") == "gptq_v2" else 1)
        qweight, qzeros = pack(codes_KN.T, bits, straight).T, pack(stored, bits, straight)
    parts = {"qweight": qweight, "qzeros": qzeros, "scales": scales_GN}
    if not awq:
        parts["g_idx"] = (np.arange(inputs) // group).astype(np.int32)
    return {p: torch.from_numpy(np.ascontiguousarray(a)) for p, a in parts.items()}, meant


def packed_folder(source: Path, folder: Path, config: dict[str, Any]) -> Path:
    """A copy of a folder with every projection packed, and beside it in `dense` what the packed ones mean."""
    random = np.random.default_rng(0)
    shutil.copytree(source, folder / "dense")
    shutil.copytree(source, folder / "packed")
    dense: State = load_file(source / "model.safetensors")
    packed: State = {}
    for name, tensor in dense.items():
        if "_proj.weight" not in name:
            packed[name] = tensor
            continue
        parts, meant = packed_layer(tensor, config, random)
        packed |= {f"{name.removesuffix('.weight')}.{p}": t for p, t in parts.items()}
        dense[name] = torch.from_numpy(meant)
    save_file(dense, folder / "dense" / "model.safetensors", {"format": "pt"})
    save_file(packed, folder / "packed" / "model.safetensors", {"format": "pt"})
    edit_config(folder / "packed", quantization_config=config)
    return folder / "packed"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[State], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_are_what_the_layout_means(checkpoint: Make, tmp_path: Path, layout: str) -> None:
    config = LAYOUTS[layout]
    folder = packed_folder(checkpoint("llama"), tmp_path, config)
    source, dense = open_checkpoint(folder), open_checkpoint(tmp_path / "dense")
    for part, shape in (("q_proj", (32, 32)), ("k_proj", (16, 32)), ("o_proj", (32, 32))):
        name = f"model.layers.1.self_attn.{part}.weight"
        codes = source.codes(name, shape)
        assert codes is not None
        assert (codes.bits, codes.group) == (config["bits"], 32 if config["group_size"] == -1 else GROUP)
        assert codes.codes.dtype == np.uint8
        assert codes.codes.max() < 2**codes.bits
        np.testing.assert_allclose(codes.dequantised(), dense.get(name, shape).numpy(), atol=1e-6)
        assert torch.equal(source.get(name, shape), torch.from_numpy(codes.dequantised()))
    assert source.codes("model.embed_tokens.weight", (320, 32)) is None
    assert dense.codes("model.layers.0.mlp.up_proj.weight", (48, 32)) is None


@pytest.mark.peer
@pytest.mark.parametrize("layout", ["gptq", "awq"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral"])
def test_logits_equal_transformers(checkpoint: Make, tmp_path: Path, family: str, layout: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = packed_folder(checkpoint(family), tmp_path, LAYOUTS[layout])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        peer = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "dense", attn_implementation="eager"
        )
        expected = peer.eval()(torch.tensor([TOKENS])).logits[0].numpy()
    got = text_logits(models.load(str(folder)), TOKENS)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_rows_and_what_the_middle_code_stands_for() -> None:
    random = np.random.default_rng(0)
    codes = Codes(
        codes=random.integers(0, 16, (8, 32), np.uint8),
        scales=random.normal(size=(8, 4)).astype(np.float32),
        offsets=random.normal(size=(8, 4)).astype(np.float32),
        bits=4,
        group=8,
    )
    order = np.array([5, 0, 7])
    assert np.array_equal(codes.rows(order).dequantised(), codes.dequantised()[order])
    middle = replace(codes, codes=np.full((8, 32), 8, np.uint8)).dequantised()
    np.testing.assert_allclose(codes.middles().repeat(8, 1), middle, rtol=1e-5, atol=1e-6)
    assert not replace(codes, offsets=-8 * codes.scales).middles().any()


def test_a_bias_of_zeros_that_the_model_lacks_is_passed_over(checkpoint: Make, tmp_path: Path) -> None:
    folder = packed_folder(checkpoint("llama"), tmp_path, GPTQ)
    edit_weights(folder, lambda s: s.update({f"{NAME}.bias": torch.zeros(32)}))
    models.load(str(folder))
    edit_weights(folder, lambda s: s.update({f"{NAME}.bias": torch.ones(32)}))
    with pytest.raises(CheckpointError, match="no place for"):
        models.load(str(folder))


def test_act_order_is_refused_by_what_the_file_holds(checkpoint: Make, tmp_path: Path) -> None:
    folder = packed_folder(checkpoint("llama"), tmp_path, GPTQ)
    edit_config(folder, quantization_config=GPTQ | {"desc_act": True})
    models.load(str(folder))  # its groups are in order all the same
    edit_weights(folder, lambda s: s.update({f"{NAME}.g_idx": s[f"{NAME}.g_idx"].flip(0)}))
    with pytest.raises(CheckpointError, match="activation order"):
        models.load(str(folder))
    edit_weights(folder, lambda s: [s.pop(n) for n in list(s) if n.endswith("g_idx")])
    with pytest.raises(CheckpointError, match="activation order"):
        models.load(str(folder))
    edit_config(folder, quantization_config=GPTQ)
    models.load(str(folder))


def changed(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    name = f"{NAME}.{part}"
    return lambda folder: edit_weights(folder, lambda s: s.update({name: change(s[name]).contiguous()}))


def configured(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, quantization_config=GPTQ | changes)


BROKEN: list[tuple[Callable[[Path], Any], str]] = [
    (configured(bits=3), "bits 3"),
    (configured(quant_method="bitsandbytes"), "'bitsandbytes'"),
    (configured(quant_method="awq", version="gemv"), "'gemv'"),
    (configured(checkpoint_format="marlin"), "'marlin'"),
    (configured(group_size=0), "group_size 0"),
    (configured(group_size="x"), "group_size 'x'"),
    (configured(group_size=24), "groups of 24"),
    (configured(group_size=8), r"qzeros is int32 of shape \(2, 4\)"),
    (configured(bits=8), r"qweight is int32 of shape \(4, 32\)"),
    (lambda f: edit_config(f, quantization_config=[4]), "a list"),
    (changed("scales", lambda t: t.int()), "scales is int32"),
    (changed("qweight", lambda t: t.long()), "qweight is int64"),
    (changed("qzeros", lambda t: t[:, :2]), "qzeros is int32 of shape"),
    (lambda f: edit_weights(f, lambda s: s.pop(f"{NAME}.scales")), "no tensor .*scales"),
    (lambda f: edit_weights(f, lambda s: s.pop(f"{NAME}.qweight")), "no tensor .*weight"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN, ids=[m for _, m in BROKEN])
def test_a_broken_folder_is_explained(
    checkpoint: Make, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    folder = packed_folder(checkpoint("llama"), tmp_path, GPTQ)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        models.load(str(folder))
    assert caught.value.expected
    assert caught.value.fix
