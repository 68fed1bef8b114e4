"""Quantised checkpoints on the compiled step: the packed bytes hold the codes that the files store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("numba")

from steps import Part
from test_compiled import OTHER_EXPERT, distance, load, logits_of
from test_gguf import NARROW, WIDE
from test_quantised import GPTQ, LAYOUTS, edit_weights, packed_folder

from lightwork import models
from lightwork.errors import CheckpointError
from lightwork.kernels.cpu.formats import MatrixFormat
from lightwork.models.checkpoint import Source, open_checkpoint
from lightwork.models.gguf.container import Container
from lightwork.models.gguf.export import BY_NAME, Entry, write_container, write_gguf
from lightwork.models.packed import EMBED_HALF, Layout, packed_bytes
from lightwork.models.parts import MATRICES, Named, each_part
from lightwork.models.precisions import Precision
from lightwork.models.precisions.quant import Quant
from lightwork.models.precisions.stored import Stored

Make = Callable[..., Path]
EXACT, ROUNDED_SCALES = 1e-5, 3e-3
PARTS = [Part(0, 0, 40), Part(1, 30, 1)]


@pytest.fixture(autouse=True)
def readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that reads packed bytes."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "kernels" / "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One packed matrix, and the tensors of the file that are its rows."""

    form: MatrixFormat
    bytes: NDArray[np.uint8]
    tensors: list[Named]
    source: Source

    def rows(self) -> Iterator[tuple[str, tuple[int, ...], slice]]:
        first = 0
        for name, shape in self.tensors:
            yield name, shape, slice(first, first + shape[0])
            first += shape[0]

    def check_stored(self) -> None:
        """Codes are those of the file, scales and offsets its own rounded once."""
        from packing import coded

        inputs = self.tensors[0][1][1]
        codes, scales, offsets = coded(self.bytes, self.form, inputs)
        for name, shape, rows in self.rows():
            stored = self.source.codes(name, shape)
            assert stored is not None
            np.testing.assert_array_equal(codes[rows], stored.codes)
            times = stored.group // self.form.group
            exact = stored.scales.astype(np.float64)
            middle = stored.offsets + exact * 2 ** (stored.bits - 1)
            np.testing.assert_array_equal(scales[rows], exact.astype(np.float16).repeat(times, 1))
            np.testing.assert_array_equal(offsets[rows], middle.astype(np.float16).repeat(times, 1))

    def check_quantised(self, only: str = "") -> None:
        """Rows of all tensors or one are what quantising their values gives."""
        from packing import packed, unpacked

        inputs = self.tensors[0][1][1]
        got, _ = unpacked(self.bytes, self.form, inputs)
        for name, shape, rows in self.rows():
            if only not in name:
                continue
            values = self.source.get(name, shape).float().numpy()
            np.testing.assert_array_equal(
                got[rows], unpacked(packed(values, self.form), self.form, inputs)[0][: shape[0]]
            )


def matrices(path: Path, precision: Precision) -> dict[str, Matrix]:
    """Every packed matrix of a model, by the name of its first tensor."""
    model, source = load(path, precision), open_checkpoint(path)
    model.close()
    form = model.numbers.matrices
    layout = Layout(model.spec, form, EMBED_HALF[source.stored()])
    packed, found = packed_bytes(layout, source), {}
    for part in each_part(model.spec):
        if part.name != "head" and part.name not in MATRICES:
            continue
        first = layout.place(part.layer, part.name)
        tensors = list(part.tensors)
        for i, one in enumerate([tensors] if part.name == "qkv" else [[named] for named in tensors]):
            at, blocks, _, block = layout.matrices[first + i]
            bytes_ = packed[at : at + blocks * block]
            found[one[0][0]] = Matrix(form=form, bytes=bytes_, tensors=one, source=source)
    return found


def with_q6_k(file: Path, new: Path, chosen: Sequence[str]) -> Path:
    """A copy of a file with random Q6_K blocks for some tensors, by the ends of their names."""
    container, random = Container(file), np.random.default_rng(0)
    q6_k = BY_NAME["Q6_K"][1]

    def blocks(count: int) -> bytes:
        made = random.integers(0, 256, (count, 210), np.uint8)
        made[:, 208:] = random.uniform(3e-5, 1e-4, (count, 1)).astype("<f2").view(np.uint8)
        return made.tobytes()

    entries = {}
    for name, place in container.tensors.items():
        data: Callable[[], bytes] = partial(container.bytes_of(place).tobytes)
        format = place.format
        if name.removesuffix(".weight").endswith(tuple(chosen)):
            format, data = q6_k, partial(blocks, int(np.prod(place.shape)) // 256)
        entries[name] = Entry(format=format, shape=place.shape, data=data)
    write_container(new, container.metadata, entries)
    return new


ALL = (".attn_q", ".attn_k", ".attn_v", ".attn_output", "output", "_gate", "_up", "_down", "_exps")


def gguf(checkpoint: Make, tmp_path: Path, family: str, type: Any) -> Path:
    size = NARROW if type in ("q8_0", "q4_0") else WIDE
    file = tmp_path / "m.gguf"
    write_gguf(checkpoint(family, **size), file, "q4_k" if type == "q6_k" else type)
    return with_q6_k(file, tmp_path / "n.gguf", ALL) if type == "q6_k" else file


def check_logits(path: Path, near: float) -> None:
    """Against torch with the dequantised values. near: root mean square, of that of the logits."""
    model = load(path)
    got, expected = logits_of(model, PARTS), logits_of(models.load(str(path)), PARTS)
    model.close()
    assert distance(got, expected) <= near * (OTHER_EXPERT if model.spec.moe else 1)


@pytest.mark.parametrize("type", ["q8_0", "q4_0", "q4_k", "q6_k"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral"])
def test_codes_of_a_gguf_file_are_kept(checkpoint: Make, tmp_path: Path, family: str, type: str) -> None:
    file = gguf(checkpoint, tmp_path, family, type)
    for matrix in matrices(file, Stored()).values():
        matrix.check_stored()
    check_logits(file, EXACT if type in ("q8_0", "q4_0") else ROUNDED_SCALES)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_codes_of_a_packed_folder_are_kept(
    checkpoint: Make, tmp_path: Path, family: str, layout: str
) -> None:
    """But for the head, which such folders hold in full."""
    size = {"moe_intermediate_size": 64} if family == "qwen3_moe" else {"intermediate_size": 64}
    folder = packed_folder(checkpoint(family, **size), tmp_path, LAYOUTS[layout])
    for name, matrix in matrices(folder, Stored()).items():
        if name == "lm_head.weight":
            matrix.check_quantised()
        else:
            matrix.check_stored()


def plain_head(state: dict[str, torch.Tensor]) -> None:
    """Two values, a whole number of steps of 4 and of 8 bits apart: a head in full is quantised exactly."""
    shape, values = state["lm_head.weight"].shape, np.array([0, 15 * 17 * 7 / 2048], np.float32)
    state["lm_head.weight"] = torch.from_numpy(np.random.default_rng(0).choice(values, shape))


def symmetric(state: dict[str, torch.Tensor], only: str = "") -> None:
    """Zeros of 8, which GPTQ stores as 7."""
    for name, tensor in state.items():
        if name.endswith(f"{only}.qzeros"):
            state[name] = torch.full_like(tensor, 0x77777777)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_of_a_packed_folder(checkpoint: Make, tmp_path: Path, layout: str) -> None:
    folder = packed_folder(checkpoint("llama", intermediate_size=64), tmp_path, LAYOUTS[layout])
    edit_weights(folder, plain_head)
    check_logits(folder, ROUNDED_SCALES)


def test_symmetric_codes_are_exact(checkpoint: Make, tmp_path: Path) -> None:
    folder = packed_folder(checkpoint("llama"), tmp_path, GPTQ)
    edit_weights(folder, plain_head)
    edit_weights(folder, symmetric)
    for name, matrix in matrices(folder, Stored()).items():
        assert not matrix.form.affine
        if name != "lm_head.weight":
            matrix.check_stored()
    check_logits(folder, EXACT)


def test_symmetric_codes_among_others_are_kept(checkpoint: Make, tmp_path: Path) -> None:
    folder = packed_folder(checkpoint("llama"), tmp_path, GPTQ)
    edit_weights(folder, partial(symmetric, only="layers.0.mlp.up_proj"))
    found = matrices(folder, Stored())
    assert found["lm_head.weight"].form.affine
    found["model.layers.0.mlp.up_proj.weight"].check_stored()


def test_codes_with_offsets_among_symmetric_ones_are_quantised(checkpoint: Make, tmp_path: Path) -> None:
    folder = packed_folder(checkpoint("llama"), tmp_path, GPTQ)
    edit_weights(folder, partial(symmetric, only="layers.0.self_attn.o_proj"))
    for name, matrix in matrices(folder, Stored()).items():
        assert not matrix.form.affine
        if name == "model.layers.0.self_attn.o_proj.weight":
            matrix.check_stored()
        else:
            matrix.check_quantised()


@pytest.mark.parametrize("group", [-1, 384])
def test_groups_that_are_no_part_of_a_panel(checkpoint: Make, tmp_path: Path, group: int) -> None:
    """The kernel goes through 1024 inputs at a time where there are many rows."""
    wide = {"hidden_size": 1152, "num_hidden_layers": 1, "head_dim": 288, "intermediate_size": 384}
    folder = packed_folder(checkpoint("llama", **wide), tmp_path, GPTQ | {"group_size": group})
    for name, matrix in matrices(folder, Stored()).items():
        if name != "lm_head.weight":
            matrix.check_stored()
    edit_weights(folder, plain_head)
    check_logits(folder, ROUNDED_SCALES)


def test_other_formats_of_a_mixed_file_are_quantised(checkpoint: Make, tmp_path: Path) -> None:
    """As in Q4_K_M. Of queries, keys and values, only those in another format are."""
    file = with_q6_k(gguf(checkpoint, tmp_path, "llama", "q4_k"), tmp_path / "n.gguf", (".attn_v", "_down"))
    found = matrices(file, Stored())
    for name, matrix in found.items():
        if name.endswith("q_proj.weight"):
            stored, values = replace(matrix, tensors=matrix.tensors[:2]), matrix.tensors[2:]
            stored.check_stored()
            assert values[0][0].endswith("v_proj.weight")
            matrix.check_quantised(only=values[0][0])
        elif name.endswith("down_proj.weight"):
            matrix.check_quantised()
        else:
            matrix.check_stored()


@pytest.mark.parametrize(
    ("type", "precision"),
    [
        ("q8_0", Quant(bits=8)),
        ("q8_0", Quant(bits=4, group=32)),
        ("q4_0", Quant(bits=8, group=32)),
        ("q4_k", Quant(bits=4, group=32)),
        ("q4_0", Quant(bits=4, group=32, activations=32, table="nf4")),
    ],
    ids=repr,
)
def test_other_codes_that_are_asked_for_are_those_of_the_values(
    checkpoint: Make, tmp_path: Path, type: str, precision: Precision
) -> None:
    for matrix in matrices(gguf(checkpoint, tmp_path, "llama", type), precision).values():
        matrix.check_quantised()


@pytest.mark.parametrize("precision", [Stored(), Quant(bits=8)], ids=repr)
@pytest.mark.parametrize("scale", [np.inf, np.nan, 1e5])
def test_a_scale_that_no_float16_holds_is_refused_by_name(
    checkpoint: Make, tmp_path: Path, scale: float, precision: Precision
) -> None:
    folder = packed_folder(checkpoint("llama"), tmp_path, GPTQ)
    name = "model.layers.1.mlp.up_proj"
    edit_weights(folder, symmetric)
    edit_weights(folder, lambda s: s.update({f"{name}.scales": torch.full((2, 48), scale)}))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load(folder, precision)
