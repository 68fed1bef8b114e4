"""The parameters of a low-rank adapter while it is trained (LoRA, Hu et al., 2021).

K inputs  N outputs  r rank  R rows
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

import torch
from torch import Tensor

from lightwork.errors import CheckpointError, RangeError
from lightwork.models.spec import ModelSpec

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What an adapter can be put beside, in Hugging Face's names."""


def shapes(spec: ModelSpec) -> dict[str, tuple[str, int, int]]:
    """Of each module of a layer: the product of `models.weights.Layer` it is part of, N and K.

    In the order in which outputs lie in that product. Raises CheckpointError for models without such modules.
    """
    if spec.family == "gpt2" or spec.moe:
        raise CheckpointError(
            f"adapters of {spec.family} models cannot be trained", expected="a dense Llama-like model"
        )
    d, ffn = spec.hidden_size, spec.dense_ffn_size or spec.ffn_size
    q, kv = spec.num_heads * spec.head_size, spec.num_kv_heads * spec.head_size
    return {
        "q_proj": ("qkv", q, d),
        "k_proj": ("qkv", kv, d),
        "v_proj": ("qkv", kv, d),
        "o_proj": ("out", d, q),
        "gate_proj": ("up", ffn, d),
        "up_proj": ("up", ffn, d),
        "down_proj": ("down", d, ffn),
    }


class Lora:
    """Matrices A [r, K] and B [N, r] of the modules of every layer; B A, scaled, is added to the frozen one.

    A is drawn as PEFT draws it, B is zero, so that training starts from the model as it is.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        rank: int,
        alpha: float,
        modules: Sequence[str],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self._shapes = shapes(spec)
        for name in modules:
            if name not in self._shapes:
                raise RangeError(f"no module is called {name!r}", expected=", ".join(self._shapes))
        self.scale = alpha / rank
        rng = torch.Generator().manual_seed(seed)
        self.parameters: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        for layer in range(spec.num_layers):
            for name, (_, outputs, inputs) in self._shapes.items():
                if name in modules:
                    bound = 1 / sqrt(inputs)
                    a_rK = (torch.rand(rank, inputs, generator=rng, dtype=torch.float64) * 2 - 1) * bound
                    b_Nr = torch.zeros(outputs, rank)
                    kept = (t.to(device, dtype).requires_grad_() for t in (a_rK, b_Nr))
                    self.parameters[layer, name] = (next(kept), next(kept))

    def added(self, layer: int, product: str, x_RK: Tensor) -> Tensor | None:
        """What is added to a product of a layer, [R, N]."""
        modules = [(name, outputs) for name, (of, outputs, _) in self._shapes.items() if of == product]
        if not any((layer, name) in self.parameters for name, _ in modules):
            return None
        parts = []
        for name, outputs in modules:
            pair = self.parameters.get((layer, name))
            if pair is None:
                parts.append(x_RK.new_zeros(len(x_RK), outputs))
            else:
                a_rK, b_Nr = (p.to(x_RK.dtype) for p in pair)
                parts.append(x_RK @ a_rK.T @ b_Nr.T * self.scale)
        return torch.cat(parts, 1)

    def of_layer(self, layer: int) -> list[Tensor]:
        """Its parameters, in a fixed order."""
        return [p for (i, _), pair in self.parameters.items() if i == layer for p in pair]

    def __iter__(self) -> Iterator[Tensor]:
        return (p for pair in self.parameters.values() for p in pair)
