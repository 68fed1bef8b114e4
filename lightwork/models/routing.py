"""Which experts tokens took, and what that says about the layers to come. Without torch.

A forward tells of its routing as it goes (`transformer.Routed`); a `Recorder` keeps it as a `RoutingTrace`.
From a trace comes the `Affinity` of experts in neighbouring layers, on which placement over ranks and the
prediction of what will be needed next stand.

N tokens  L layers that have experts  E experts of a layer  K experts that a token takes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import RangeError


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTrace:
    """chosen_NLK: int64, the experts of each token in each layer, the most probable first.

    layers: which ones of the model have experts; other layers are left out.
    """

    chosen_NLK: NDArray[np.int64]
    num_experts: int
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        chosen = self.chosen_NLK
        if chosen.ndim != 3 or chosen.shape[1] != len(self.layers):
            raise RangeError(
                f"a routing trace has the shape {chosen.shape}",
                expected=f"(tokens, {len(self.layers)} layers, experts per token)",
            )
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < self.num_experts:
            raise RangeError(
                f"a routing trace names the experts {chosen.min()} to {chosen.max()}",
                expected=f"0 to {self.num_experts - 1}",
            )

    def __len__(self) -> int:
        return len(self.chosen_NLK)

    @property
    def first_NL(self) -> NDArray[np.int64]:
        """The most probable expert of each token and layer."""
        return self.chosen_NLK[:, :, 0]

    def part(self, start: int, stop: int) -> RoutingTrace:
        """Of tokens start to stop - 1."""
        return self.of(np.arange(len(self))[start:stop])

    def of(self, tokens: NDArray[np.int64]) -> RoutingTrace:
        """Of these tokens, in their order."""
        return replace(self, chosen_NLK=self.chosen_NLK[tokens])

    def loads(self) -> NDArray[np.int64]:
        """How many tokens each expert was taken by, [L, E]."""
        one_hot = np.arange(self.num_experts) == self.chosen_NLK[..., None]
        loads: NDArray[np.int64] = one_hot.sum((0, 2), dtype=np.int64)
        return loads


class Recorder:
    """Give it to forwards as `routed`; `trace` is of all their rows, in order."""

    def __init__(self) -> None:
        self._chosen: dict[int, list[NDArray[np.int64]]] = {}
        self._num_experts = 0

    def __call__(self, layer: int, probable_RE: Any, chosen_RK: Any) -> None:
        """Tensors, as `transformer.Routed` has them."""
        self._num_experts = probable_RE.shape[1]
        self._chosen.setdefault(layer, []).append(chosen_RK.cpu().numpy())

    def trace(self) -> RoutingTrace:
        """Raises RangeError if no row was routed."""
        if not self._chosen:
            raise RangeError("no row was routed", expected="a forward of a model that has experts")
        layers = sorted(self._chosen)
        chosen = [np.concatenate(self._chosen[layer]) for layer in layers]
        return RoutingTrace(
            chosen_NLK=np.stack(chosen, 1), num_experts=self._num_experts, layers=tuple(layers)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """joint_LEE: [L - 1, E, E], the share of tokens that take expert i of a layer and j of the next."""

    joint_LEE: NDArray[np.float64]

    @classmethod
    def of(cls, trace: RoutingTrace) -> Affinity:
        """By the most probable expert of each layer. Raises RangeError for an empty trace."""
        num, first, size = len(trace), trace.first_NL, trace.num_experts
        if not num or first.shape[1] < 2:
            raise RangeError(
                f"a routing trace of {num} tokens in {first.shape[1]} layers says nothing of affinity",
                expected="at least 1 token in 2 layers",
            )
        pairs = first[:, :-1] * size + first[:, 1:]
        counts = [np.bincount(pair, minlength=size * size) for pair in pairs.T]
        return cls(joint_LEE=np.stack(counts).reshape(-1, size, size) / num)

    @property
    def num_layers(self) -> int:
        return len(self.joint_LEE) + 1

    @property
    def num_experts(self) -> int:
        return int(self.joint_LEE.shape[1])

    def likely(self, layer: int, taken: Sequence[int], num: int) -> list[int]:
        """The `num` most probable experts of layer + 1 behind these of a layer, soonest first.

        An expert that no token of the trace took tells nothing: then those that are taken most.
        """
        joint_EE = self.joint_LEE[layer]
        given_TE = joint_EE[list(taken)]
        of_T = given_TE.sum(1)
        seen = of_T > 0
        scores_E = (given_TE[seen] / of_T[seen, None]).sum(0) if seen.any() else joint_EE.sum(0)
        return [int(e) for e in np.argsort(-scores_E, kind="stable")[:num]]
