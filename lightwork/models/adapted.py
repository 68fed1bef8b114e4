"""What adapters add to the products of a forward in torch, to their own rows only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightwork.models.adapters import Adapter
from lightwork.models.parts import each_module
from lightwork.models.spec import ModelSpec
from lightwork.models.transformer import Adapt

Placed = Mapping[tuple[int, str], Sequence[tuple[int, Tensor, Tensor]]]
"""By layer and product: the first output, A [rank, inputs], and B [outputs, rank], scaled."""


def place(adapter: Adapter, spec: ModelSpec, dtype: torch.dtype, device: str) -> Placed:
    """An adapter's matrices on a device, in float32 or wider."""
    kind = torch.promote_types(dtype, torch.float32)
    placed: dict[tuple[int, str], list[tuple[int, Tensor, Tensor]]] = {}
    for module in each_module(spec):
        delta = adapter.deltas.get(module.path)
        if delta is not None:
            # Copies: who trains an adapter goes on writing where it came from.
            a, b = (torch.tensor(x, dtype=kind, device=device) for x in (delta.a, delta.b))
            placed.setdefault((module.layer, module.product), []).append((module.first, a, delta.scale * b))
    return placed


def adapt_rows(placed: Sequence[Placed | None], seqs_R: Tensor) -> Adapt | None:
    """What the rows of each sequence get of its adapter; None if none has one."""
    # Sequences of one adapter go together.
    of: dict[int, tuple[Placed, list[int]]] = {}
    for seq, adapter in enumerate(placed):
        if adapter is not None:
            of.setdefault(id(adapter), (adapter, []))[1].append(seq)
    if not of:
        return None
    groups = [
        (adapter, torch.isin(seqs_R, torch.tensor(seqs, device=seqs_R.device)).nonzero()[:, 0])
        for adapter, seqs in of.values()
    ]

    def adapt(layer: int, product: str, x: Tensor, y: Tensor) -> Tensor:
        for adapter, rows in groups:
            for first, a, b in adapter.get((layer, product), ()):
                added = (x[rows].to(a.dtype) @ a.T) @ b.T
                y[rows, first : first + len(b)] += added.to(y.dtype)
        return y

    return adapt
