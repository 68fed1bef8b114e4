"""A Hugging Face folder as a GGUF file, in the layout that llama.cpp reads.

Matrices are stored in the type asked for; norms, biases and routers stay in float32, as llama.cpp wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightwork.errors import CheckpointError
from lightwork.home import save
from lightwork.models.checkpoint import Checkpoint
from lightwork.models.gguf.blocks import FORMATS, Format
from lightwork.models.gguf.checkpoint import PLAIN
from lightwork.models.gguf.container import ALIGNMENT, ARRAY, MAGIC, SCALARS, STRING, VERSIONS, Place, Value
from lightwork.models.gguf.shape import ARCHITECTURES, ROPE_FACTORS, gguf_name, rope_factors, row_order
from lightwork.models.gguf.vocabulary import vocabulary_metadata
from lightwork.models.spec import ModelSpec, read_spec
from lightwork.models.weights import from_checkpoint

Type = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k"]
BY_NAME = {f.name: (number, f) for number, f in FORMATS.items()}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_k": 14}
"""general.file_type: what llama.cpp calls the whole file."""
ARCH = {"llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe"}
_TYPE_OF = {dtype: number for number, dtype in SCALARS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor to write. data: its bytes in that format."""

    format: Format
    shape: tuple[int, ...]
    data: Callable[[], bytes]


def write_gguf(folder: Path, file: Path, type: Type) -> None:
    """Write a Llama-like model of a Hugging Face folder, with its tokenizer, as one GGUF file.

    Raises CheckpointError for a model that GGUF cannot describe or whose rows are no multiple of the type's
    blocks.
    """
    spec = read_spec(folder)
    arch = ARCH.get(spec.family, spec.family)
    _check(spec, arch)
    metadata = _shape_metadata(spec, arch) | {"general.file_type": FILE_TYPES[type]}
    metadata |= vocabulary_metadata(folder, spec.vocab_size)
    write_container(file, metadata, _entries(folder, spec, arch, BY_NAME[type.upper()][1]))


def write_container(file: Path, metadata: Mapping[str, Value], entries: Mapping[str, Entry]) -> None:
    """Write metadata and tensors. Numbers are written as unsigned 32 bits or float32, arrays as they are."""
    header = MAGIC + VERSIONS[-1].to_bytes(4, "little")
    header += len(entries).to_bytes(8, "little") + len(metadata).to_bytes(8, "little")
    header += b"".join(_text(key) + _typed(value) for key, value in metadata.items())
    offset = 0
    for name, entry in entries.items():
        number, format = BY_NAME[entry.format.name]
        header += _text(name) + len(entry.shape).to_bytes(4, "little")
        header += b"".join(n.to_bytes(8, "little") for n in reversed(entry.shape))
        header += number.to_bytes(4, "little") + offset.to_bytes(8, "little")
        offset += _aligned(Place(format=format, shape=entry.shape, start=0).nbytes)

    def write(part: Path) -> None:
        with part.open("wb") as out:
            _padded(out, header)
            for entry in entries.values():
                _padded(out, entry.data())

    save(file, write)


def _check(spec: ModelSpec, arch: str) -> None:
    whole = frozenset(range(spec.num_layers))
    plain = spec.activation == "silu" and spec.windowed in (frozenset(), whole)
    if arch not in ARCHITECTURES or not plain or spec.moe not in (frozenset(), whole):
        raise CheckpointError(
            f"this {spec.family} model cannot be written as GGUF",
            expected=f"a model of {', '.join(ARCHITECTURES)} with all layers alike",
            fix="another model",
        )
    if spec.moe and not spec.normalise_gates:
        raise CheckpointError(
            "GGUF has no place for gates that are not normalised",
            expected="norm_topk_prob true",
            fix="another",
        )


def _shape_metadata(spec: ModelSpec, arch: str) -> dict[str, Value]:
    rope = spec.rope
    values: dict[str, Value] = {
        "block_count": spec.num_layers,
        "context_length": spec.max_len,
        "embedding_length": spec.hidden_size,
        "feed_forward_length": spec.dense_ffn_size or spec.ffn_size,
        "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.num_kv_heads,
        "attention.key_length": spec.head_size,
        "attention.value_length": spec.head_size,
        "attention.layer_norm_rms_epsilon": float(spec.norm_eps),
        "rope.dimension_count": spec.head_size,
        "rope.freq_base": float(rope.theta),
        "vocab_size": spec.vocab_size,
    }
    if spec.sliding_window and spec.windowed:
        values["attention.sliding_window"] = spec.sliding_window
    if spec.moe:
        values |= {"expert_count": spec.num_experts, "expert_used_count": spec.experts_per_token}
        values["expert_feed_forward_length"] = spec.ffn_size
    if rope.kind == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}
    if rope.kind == "llama3":
        values["rope.scaling.original_context_length"] = rope.original_len
    return {
        "general.architecture": arch,
        "general.name": spec.name or arch,
        "general.alignment": ALIGNMENT,
        **{f"{arch}.{key}": value for key, value in values.items()},
    }


def _entries(folder: Path, spec: ModelSpec, arch: str, format: Format) -> dict[str, Entry]:
    """All tensors that the model asks its checkpoint for; the experts of a layer become one."""
    checkpoint = Checkpoint(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[str]] = {}

    def record(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        shapes[name] = shape
        parts.setdefault(gguf_name(name)[0], []).append(name)
        return torch.empty(shape, device="meta")

    from_checkpoint(spec, record)

    def encoded(names: list[str], format: Format) -> bytes:
        tensors = [_rotated(n, checkpoint.get(n, shapes[n]).float(), spec, arch) for n in names]
        return b"".join(encode(t.numpy(), format) for t in tensors)

    entries = {}
    for stored, names in parts.items():
        shape, stacked = shapes[names[0]], gguf_name(names[0])[1] is not None
        full = len(shape) < 2 or stored.endswith("ffn_gate_inp.weight")
        if not full and shape[-1] % format.block:
            raise CheckpointError(
                f"{names[0]} has rows of {shape[-1]}",
                expected=f"a multiple of {format.block}",
                fix="f16" if format.block == 32 else "q8_0",
            )
        own = BY_NAME["F32"][1] if full else format
        whole = (len(names), *shape) if stacked else shape
        entries[stored] = Entry(format=own, shape=whole, data=partial(encoded, names, own))
    if spec.rope.kind == "llama3":
        table = rope_factors(spec.rope, spec.head_size)
        entries[ROPE_FACTORS] = Entry(format=BY_NAME["F32"][1], shape=table.shape, data=table.tobytes)
    return entries


def _rotated(name: str, tensor: torch.Tensor, spec: ModelSpec, arch: str) -> torch.Tensor:
    """Q and K with their rows in the order of the llama architecture."""
    if arch != "llama" or not any(f".{p}_proj." in name for p in "qk"):
        return tensor
    return tensor[torch.from_numpy(np.argsort(row_order(len(tensor), spec.head_size)))]


def encode(values: NDArray[np.float32], format: Format) -> bytes:
    """Values [..., K] in a format; K is a multiple of its blocks."""
    if format.encode is None:
        plain = torch.from_numpy(values).to(PLAIN[format.name])
        return plain.contiguous().view(torch.uint8).numpy().tobytes()
    rows = values.reshape(prod(values.shape[:-1]), -1, format.block)
    return format.encode(rows).tobytes()


def _typed(value: Value) -> bytes:
    """A metadata value behind the number of its type."""
    if isinstance(value, str):
        return STRING.to_bytes(4, "little") + _text(value)
    if isinstance(value, list):
        head = ARRAY.to_bytes(4, "little") + STRING.to_bytes(4, "little")
        return head + len(value).to_bytes(8, "little") + b"".join(map(_text, value))
    if isinstance(value, np.ndarray):
        head = ARRAY.to_bytes(4, "little") + _TYPE_OF[value.dtype].to_bytes(4, "little")
        return head + len(value).to_bytes(8, "little") + value.tobytes()
    dtype: Any = "?" if isinstance(value, bool) else "<u4" if isinstance(value, int) else "<f4"
    return _TYPE_OF[np.dtype(dtype)].to_bytes(4, "little") + np.array(value, dtype).tobytes()


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return len(encoded).to_bytes(8, "little") + encoded


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _padded(out: IO[bytes], data: bytes) -> None:
    out.write(data)
    out.write(bytes(_aligned(len(data)) - len(data)))
