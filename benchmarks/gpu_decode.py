"""How near do the Triton kernels come to what a GPU allows, and how far ahead of plain torch are they?

Llama 3 8B with random bfloat16 weights. Decoding is bound by reading weights, keys and values: its share is
counted bytes over the bandwidth of this device's preset. Prefilling is bound by products: its share is
counted operations over the preset's rate. Both run the same steps as `Model.forward`, in turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from _report import report

from lightwork.cluster import Device, parse_place
from lightwork.cluster.presets import names
from lightwork.errors import LightworkError
from lightwork.kernels.rows import Rows
from lightwork.models import read_shape
from lightwork.models.model import KVPool, Model
from lightwork.models.spec import ModelSpec
from lightwork.models.tokenizer import Tokenizer
from lightwork.models.weights import Layer, Weights
from lightwork.models.work import forward_work
from lightwork.runtime.clock import WallClock

SHAPE = "shape:llama-3-8b"
BLOCK = 16
DTYPE = "bfloat16"
DECODES = ((1, 2048), (1, 8000), (8, 2048), (64, 2048))
"""Sequences, and keys of each."""

PREFILLS = ((0, 512), (0, 2048), (6000, 2048))
"""Keys before the chunk, and its rows."""

ROUNDS = 9
BURST = 8
"""Steps of a round, so that its clock readings cost nothing."""


def random_weights(spec: ModelSpec, device: str) -> Weights:
    def normal(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0.0, 0.02)

    d, size = spec.hidden_size, spec.head_size
    layers = [
        Layer(
            norm1=normal(d) + 1,
            qkv=normal((spec.num_heads + 2 * spec.num_kv_heads) * size, d),
            out=normal(d, spec.num_heads * size),
            norm2=normal(d) + 1,
            up=normal(2 * spec.ffn_size, d),
            down=normal(d, spec.ffn_size),
        )
        for _ in range(spec.num_layers)
    ]
    return Weights(
        embed=normal(spec.vocab_size, d), layers=layers, norm=normal(d) + 1, head=normal(spec.vocab_size, d)
    )


def make_rows(num_seqs: int, start: int, count: int) -> Rows:
    """`count` rows after `start` keys, of each of some sequences with scattered blocks."""
    width = -(-(start + count) // BLOCK)
    tables = np.random.default_rng(0).permutation(num_seqs * width).astype(np.int32).reshape(num_seqs, width)
    index = np.tile(np.arange(start, start + count), num_seqs)
    seqs = np.repeat(np.arange(num_seqs, dtype=np.int32), count)
    return Rows(
        tokens=index % 1000,
        positions=index,
        slots=tables[seqs, index // BLOCK].astype(np.int64) * BLOCK + index % BLOCK,
        seqs=seqs,
        index=index,
        ancestors=np.zeros(len(index), np.uint64),
        known=np.full(num_seqs, start + count),
        tables=tables,
        scored=np.arange(count - 1, len(index), count),
    )


def seconds(forward: Callable[[Rows, KVPool], torch.Tensor], rows: Rows, pool: KVPool) -> float:
    """Of one step, host work included."""
    clock = WallClock()
    torch.cuda.synchronize()
    start_s = clock.now()
    for _ in range(BURST):
        forward(rows, pool)
    torch.cuda.synchronize()
    return (clock.now() - start_s) / BURST


def compare(model: Model, step: Any, pool: KVPool, rows: Rows) -> dict[str, Any]:
    """Milliseconds of a step on the kernels and the ratio to torch, in turns; the largest difference."""
    ours, theirs = step.forward(rows, pool).clone(), model.forward(rows, pool)
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    pairs = [(seconds(step.forward, rows, pool), seconds(model.forward, rows, pool)) for _ in range(ROUNDS)]
    ratios = sorted(other / own for own, other in pairs)
    return {
        "ms": round(1e3 * median(own for own, _ in pairs), 3),
        "over_torch": round(median(ratios), 2),
        "spread": [round(ratios[1], 2), round(ratios[-2], 2)],
        "relative_difference": round(difference, 4),
    }


def preset() -> tuple[str, Device]:
    """This GPU's preset. Raises LightworkError if there is none."""
    name = torch.cuda.get_device_name()
    found = next((n for n in names() if n in name.lower()), None)
    if found is None:
        raise LightworkError(
            f"there is no preset for {name}", expected=", ".join(names()), fix="add one in cluster/presets"
        )
    return found, parse_place(f"sim:{found}").device


def measure(num_seqs: int, start: int, count: int, model: Model, step: Any, device: Device) -> dict[str, Any]:
    pool = model.new_kv(num_seqs * -(-(start + count) // BLOCK), BLOCK)
    pool.keys_LTGD.normal_()
    pool.values_LTGD.normal_()
    seen = compare(model, step, pool, make_rows(num_seqs, start, count))
    work = forward_work(model.spec, [(start, count)] * num_seqs, num_seqs, dtype=DTYPE)
    if count == 1:
        limit_s = sum(w.bytes for w in work) / device.memory().read_bytes_per_s
    else:
        limit_s = sum(w.ops for w in work if w.kind != "vector") / device.unit.rate("matmul", DTYPE)
    kind = "decode" if count == 1 else "prefill"
    return {"step": kind, "seqs": num_seqs, "keys": start, "rows": count, **seen} | {
        "share_of_limit": round(1e3 * limit_s / seen["ms"], 3)
    }


def main() -> None:
    if not torch.cuda.is_available():
        print("gpu_decode needs a CUDA device, and torch sees none here", file=sys.stderr)
        return
    from lightwork.models.gpu_step import GpuStep

    name, device = preset()
    spec = read_shape(SHAPE)
    weights = random_weights(spec, "cuda:0")
    model = Model(spec, weights, cast(Tokenizer, None), {}, "cuda:0")
    step = GpuStep(model)
    shapes = [(seqs, keys - 1, 1) for seqs, keys in DECODES] + [(1, *chunk) for chunk in PREFILLS]
    for num_seqs, start, count in shapes:
        needed = num_seqs * (start + count) * spec.kv_bytes_per_token(DTYPE)
        if needed > 0.6 * torch.cuda.mem_get_info()[0]:
            print(f"{num_seqs} sequences of {start + count} keys do not fit here", file=sys.stderr)
            continue
        figures = measure(num_seqs, start, count, model, step, device)
        report(
            "gpu_decode", device=torch.cuda.get_device_name(), preset=name, torch=torch.__version__, **figures
        )


if __name__ == "__main__":
    main()
