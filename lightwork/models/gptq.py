"""Matrices that GPTQ and AWQ packed into 32-bit words, several codes to a word.

GPTQ: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022; AWQ: "AWQ:
Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023. The layouts are those of the
checkpoints that AutoGPTQ and AutoAWQ write. A weight is scale * (code - zero), and a group of inputs shares
scale and zero.

    qweight int32   GPTQ [K / codes per word, N], down the inputs; AWQ [K, N / 8], along the outputs
    qzeros  int32   [groups, N / codes per word]; GPTQ's first version stores zero - 1
    scales  float   [groups, N]
    g_idx   int32   [K], GPTQ: the group of each input

N outputs  K inputs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CheckpointError
from lightwork.models.codes import Codes

PARTS = ("qweight", "qzeros", "scales", "g_idx")
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""Nibble of a word that holds each of its eight outputs: the nibbles hold outputs 0, 2, 4, 6, 1, 3, 5, 7."""
SUPPORTED = "quant_method gptq (bits 4 or 8) or awq (bits 4, version gemm)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """What quantization_config says. group: inputs that share a scale, None for all of them."""

    method: Literal["gptq", "awq"]
    bits: Literal[4, 8]
    group: int | None
    zero_shift: int = 0
    act_order: bool = False

    @classmethod
    def of(cls, config: object) -> Packing | None:
        """Read quantization_config; None without one. Raises CheckpointError for what is not supported."""
        if not config:
            return None
        if not isinstance(config, Mapping):
            raise _unsupported(f"a {type(config).__name__} for quantization_config")
        method = config.get("quant_method")
        bits = config.get("bits", config.get("w_bit"))
        group = config.get("group_size", config.get("q_group_size", 128))
        if not isinstance(group, int) or (group < 1 and group != -1):
            raise _unsupported(f"group_size {group!r}")
        size = None if group == -1 else group
        if method == "awq":
            version = str(config.get("version", "gemm")).lower()
            if bits != 4 or version != "gemm":
                raise _unsupported(f"awq with bits {bits!r} and version {version!r}")
            return cls(method="awq", bits=4, group=size)
        form = str(config.get("checkpoint_format", "gptq")).lower()
        if method != "gptq" or bits not in (4, 8) or form not in ("gptq", "gptq_v2"):
            raise _unsupported(f"quant_method {method!r} with bits {bits!r} and format {form!r}")
        return cls(
            method="gptq",
            bits=4 if bits == 4 else 8,
            group=size,
            zero_shift=1 if form == "gptq" else 0,
            act_order=bool(config.get("desc_act", False)),
        )


def unpack(packing: Packing, name: str, parts: Mapping[str, NDArray[Any]], shape: tuple[int, int]) -> Codes:
    """The matrix of a layer from its parts. Raises CheckpointError if they are missing or do not fit."""
    outputs, inputs = shape
    group, per_word = packing.group or inputs, 32 // packing.bits
    if inputs % group or inputs % per_word or outputs % per_word:
        raise CheckpointError(
            f"{name} of {inputs} inputs and {outputs} outputs cannot be packed in groups of {group}",
            expected=f"a group_size that divides the inputs, and multiples of {per_word}",
            fix="correct group_size in quantization_config",
        )
    down = packing.method == "gptq"
    wanted = {
        "qweight": (inputs // per_word, outputs) if down else (inputs, outputs // per_word),
        "qzeros": (inputs // group, outputs // per_word),
        "scales": (inputs // group, outputs),
    }
    for part, expected in wanted.items():
        _check_part(f"{name}.{part}", parts.get(part), expected, "f" if part == "scales" else "i")
    if down:
        _check_order(packing, name, parts.get("g_idx"), inputs, group)
        codes = _along_rows(np.ascontiguousarray(parts["qweight"].T), packing.bits)
        zeros = _along_rows(parts["qzeros"], packing.bits).T.astype(np.float32) + packing.zero_shift
    else:
        codes = np.ascontiguousarray(_awq(parts["qweight"]).T)
        zeros = _awq(parts["qzeros"]).T.astype(np.float32)
    scales = np.ascontiguousarray(parts["scales"].T, dtype=np.float32)
    offsets = np.ascontiguousarray(-scales * zeros)
    return Codes(codes=codes, scales=scales, offsets=offsets, bits=packing.bits, group=group)


def _along_rows(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """The codes of each row [rows, words] in turn, least significant first: [rows, words * 32 / bits]."""
    packed = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(words), -1)


def _awq(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    codes = _along_rows(words, 4)
    return codes.reshape(len(words), -1, 8)[..., AWQ_ORDER].reshape(codes.shape)


def _check_part(name: str, part: NDArray[Any] | None, shape: tuple[int, int], kind: str) -> None:
    """kind: numpy's letter for a type of 32 bits."""
    if part is None:
        raise CheckpointError(
            f"there is no tensor {name}", expected="qweight, qzeros and scales", fix="copy it again"
        )
    if part.shape != shape or part.dtype.kind != kind or part.dtype.itemsize != 4:
        wanted = "float" if kind == "f" else "int32"
        raise CheckpointError(
            f"{name} is {part.dtype} of shape {part.shape}",
            expected=f"{wanted} of shape {shape}, from config.json and its quantization_config",
            fix="correct bits and group_size in quantization_config, or copy the weights again",
        )


def _check_order(packing: Packing, name: str, index: NDArray[Any] | None, inputs: int, group: int) -> None:
    """Groups must be neighbours: with activation order, any inputs can share a scale."""
    in_order = not packing.act_order if index is None else _is_in_order(index, inputs, group)
    if not in_order:
        raise CheckpointError(
            f"{name} is packed in activation order (desc_act)",
            expected="groups of neighbouring inputs",
            fix="a checkpoint made with desc_act false",
        )


def _is_in_order(index: NDArray[Any], inputs: int, group: int) -> bool:
    return np.array_equal(index, np.arange(inputs) // group)


def _unsupported(what: str) -> CheckpointError:
    return CheckpointError(
        f"this checkpoint is quantised with {what}, which is not supported",
        expected=SUPPORTED,
        fix="such a checkpoint, or the one it was made from",
    )
