"""Mixed precision of experts: bits for each expert by what its rounding would cost, within a budget.

Paper:  "Mixture Compressor for Mixture-of-Experts LLMs Gains More", 2025 (bits by usage and sensitivity)
Idea:   all experts start at the fewest bits; the budget is spent, step after step, where a byte removes most
        error: the error of an expert is what it adds to the residual stream, times how far rounding
        moves its weights. With steps of falling worth this is the knapsack's answer but for the last step
Shapes: experts of L layers, a number of bytes -> 4, 8 or 16 bits for each, and the rounded weights
Cost:   rounding all experts to each number of bits; O(L E log(L E)) for the knapsack
Claims: moe_survey
Differs: the paper goes down to 1 bit, and solves an integer program; 4, 8 and 16 bits are what the CPU's
        kernels compute with
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightwork.errors import CapacityError
from lightwork.kernels.cpu.formats import CENTRE, MatrixFormat
from lightwork.kernels.cpu.pack import quantise
from lightwork.models.compressions import Compressed, Usage
from lightwork.models.precisions.quant import Quant
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Weights

Bits = Literal[4, 8, 16]
STEPS: tuple[Bits, ...] = (4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedBits:
    """mean_bits: the budget, as bits of each weight on average, scales included. group: inputs that share a
    scale."""

    mean_bits: float = 6.0
    group: int = 32

    @torch.no_grad()
    def compress(self, weights: Weights, spec: ModelSpec, usage: Usage) -> Compressed:
        """Raises CapacityError if the budget does not hold all experts at 4 bits."""
        layers = sorted(spec.moe)
        forms = {bits: self._form(bits) for bits in STEPS}
        first = weights.layers[layers[0]]
        sizes = {
            bits: sum(_nbytes(m[0], form) for m in (first.up, first.down)) for bits, form in forms.items()
        }
        num = first.up[0].numel() + first.down[0].numel()
        budget = int(self.mean_bits / 8 * num * len(layers) * spec.num_experts)
        rounded = {
            (i, bits): (_rounded(weights.layers[i].up, form), _rounded(weights.layers[i].down, form))
            for i in layers
            for bits, form in forms.items()
        }
        moved = np.stack([[_moved(weights, rounded, i, bits) for i in layers] for bits in STEPS], -1)
        bits_LE = allot(usage.outputs_LE[..., None] * moved, sizes, budget)
        chosen = list(weights.layers)
        for at, i in enumerate(layers):
            ups, downs = (
                torch.stack([rounded[i, STEPS[b]][side][e] for e, b in enumerate(bits_LE[at])])
                for side in (0, 1)
            )
            chosen[i] = replace(chosen[i], up=ups, down=downs)
        nbytes = sum(sizes[STEPS[b]] for b in bits_LE.flat)
        return Compressed(weights=replace(weights, layers=chosen), spec=spec, expert_bytes=nbytes)

    def _form(self, bits: Bits) -> MatrixFormat:
        inputs: Literal[16, 32] = 16 if bits == 16 else 32
        return Quant(bits=bits, group=self.group, activations=inputs).numbers("float32").matrices


def allot(errors_LEB: NDArray[np.float64], sizes: Mapping[Bits, int], budget: int) -> NDArray[np.int64]:
    """For each expert the place in STEPS of its bits. errors_LEB: with each number of bits; sizes: bytes.

    Raises CapacityError if the fewest bits are too many.
    """
    num_layers, num_experts, _ = errors_LEB.shape
    at: NDArray[np.int64] = np.zeros((num_layers, num_experts), np.int64)
    left = budget - at.size * sizes[STEPS[0]]
    if left < 0:
        raise CapacityError(
            f"{at.size} experts take {at.size * sizes[STEPS[0]]} bytes in {STEPS[0]} bits",
            expected=f"at most {budget}, the budget",
            fix="MixedBits(mean_bits=6.0)",
        )

    def step(layer: int, e: int) -> tuple[float, int, int]:
        """The next step of an expert, those that remove most error per byte first."""
        b = int(at[layer, e])
        gain = errors_LEB[layer, e, b] - errors_LEB[layer, e, b + 1]
        return -gain / (sizes[STEPS[b + 1]] - sizes[STEPS[b]]), layer, e

    heap = [step(layer, e) for layer in range(num_layers) for e in range(num_experts)]
    heapify(heap)
    while heap:
        _, layer, e = heappop(heap)
        b = int(at[layer, e])
        cost = sizes[STEPS[b + 1]] - sizes[STEPS[b]]
        if cost > left:
            continue
        left -= cost
        at[layer, e] += 1
        if b + 2 < len(STEPS):
            heappush(heap, step(layer, e))
    return at


def _moved(
    weights: Weights, rounded: Mapping[tuple[int, Bits], tuple[Tensor, Tensor]], i: int, bits: Bits
) -> list[float]:
    """Of each expert of a layer, how far rounding moves its weights, as a share of their length."""
    layer, (up, down) = weights.layers[i], rounded[i, bits]
    away_E = ((layer.up - up).square().sum((1, 2)) + (layer.down - down).square().sum((1, 2))).sqrt()
    whole_E = (layer.up.square().sum((1, 2)) + layer.down.square().sum((1, 2))).sqrt()
    found: list[float] = (away_E / whole_E).tolist()
    return found


def _nbytes(matrix_NK: Tensor, form: MatrixFormat) -> int:
    n, k = matrix_NK.shape
    return form.nbytes(n, k)


def _rounded(experts_ENK: Tensor, form: MatrixFormat) -> Tensor:
    """The values that a format stores."""
    if not form.quantised:
        return experts_ENK.bfloat16().to(experts_ENK.dtype)
    n, k = experts_ENK.shape[1:]
    rows = experts_ENK.reshape(-1, k).float().contiguous().numpy()
    coded = quantise(rows, form)
    scales = coded.scales.view(np.float16).astype(np.float32)
    codes = coded.codes.reshape(len(rows), scales.shape[1], form.group).astype(np.float32)
    values = (codes - CENTRE[form.code]) * scales[..., None]
    return torch.from_numpy(values.reshape(len(rows), -1)[:, :k]).reshape(-1, n, k).to(experts_ENK.dtype)
