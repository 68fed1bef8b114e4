"""The parameters of a low-rank adapter while it is trained (LoRA, Hu et al., 2021).

K inputs  N outputs  r rank  R rows
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import sqrt

import torch
from torch import Tensor

from lightwork.errors import RangeError
from lightwork.models.adapters import Adapter, Delta
from lightwork.models.parts import Module, each_module
from lightwork.models.spec import ModelSpec


class Lora:
    """Matrices A [r, K] and B [N, r] beside modules of every layer; B A, scaled, is added to the frozen one.

    A is drawn as PEFT draws it, B is zero, so that training starts from the model as it is. modules: as the
    last part of their path has them ("q_proj"); empty: all. Raises RangeError for one that is not there.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        rank: int,
        alpha: float,
        modules: Collection[str] = (),
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.scale = alpha / rank
        self._pairs: dict[Module, tuple[Tensor, Tensor]] = {}
        self._of_product: dict[tuple[int, str], list[tuple[Module, tuple[Tensor, Tensor]]]] = {}
        rng, names = torch.Generator().manual_seed(seed), set()
        for module in each_module(spec):
            name = module.path.rpartition(".")[2]
            names.add(name)
            if modules and name not in modules:
                continue
            a_rK = torch.rand(rank, module.inputs, generator=rng, dtype=torch.float64) * 2 - 1
            pair = a_rK / sqrt(module.inputs), torch.zeros(module.outputs, rank)
            a_rK, b_Nr = (t.to(device, dtype).requires_grad_() for t in pair)
            self._pairs[module] = a_rK, b_Nr
            self._of_product.setdefault((module.layer, module.product), []).append((module, (a_rK, b_Nr)))
        if missing := {*modules} - names:
            raise RangeError(f"no module is called {min(missing)!r}", expected=", ".join(sorted(names)))

    def adapt(self, layer: int, product: str, x_RK: Tensor, y_RN: Tensor) -> Tensor:
        """A product of a layer with what is added to it."""
        for module, pair in self._of_product.get((layer, product), ()):
            a_rK, b_Nr = (p.to(x_RK.dtype) for p in pair)
            more = x_RK @ a_rK.T @ b_Nr.T * self.scale
            left, right = module.first, y_RN.shape[1] - module.first - module.outputs
            y_RN = y_RN + (torch.nn.functional.pad(more, (left, right)) if left or right else more)
        return y_RN

    def of_layer(self, layer: int) -> list[Tensor]:
        """Its parameters, in a fixed order."""
        return [p for module, pair in self._pairs.items() if module.layer == layer for p in pair]

    def adapter(self, name: str) -> Adapter:
        """A copy as it is now, to be served or written."""
        deltas = {}
        for module, pair in self._pairs.items():
            a, b = (p.detach().float().cpu().numpy().copy() for p in pair)
            deltas[module.path] = Delta(a=a, b=b, scale=self.scale)
        return Adapter(name=name, deltas=deltas)

    def __iter__(self) -> Iterator[Tensor]:
        return (p for pair in self._pairs.values() for p in pair)
