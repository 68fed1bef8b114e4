"""The experts of each layer that lie in fast memory, as many of every layer; and what a trace costs so.

Policies say who stays (residencies/) and what comes next (predictors/); whoever moves bytes is told which
expert goes into which slot. A token needs all its experts of a layer together, so fewer slots are refused.

N tokens  L layers that have experts  E experts of a layer  K experts that a token takes  W experts predicted
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CapacityError, RangeError
from lightwork.memory.predictors import Predictor, Seen
from lightwork.memory.residencies import Residency
from lightwork.memory.residents import Residents
from lightwork.models.routing import RoutingTrace

Routes = Sequence[Sequence[Sequence[int]]]
"""Of each token, in each layer that has experts, those that it goes through: `trace.chosen_NLK.tolist()`, or
fewer where some are skipped."""
PolicyOf = Callable[[int], Residency[Any]]
"""Which of the layers that have experts -> who stays there."""


class Copied(NamedTuple):
    """An expert to copy into a slot, both counted within its layer."""

    expert: int
    slot: int


def name_of(layer: int, expert: int) -> str:
    """How policies call an expert. layer: which one of those that have experts."""
    return f"{layer}.{expert}"


def names_used(trace: RoutingTrace, layer: int) -> tuple[str, ...]:
    """What `ExpertCache` tells the policy of a layer in a replay of this trace."""
    return tuple(name_of(layer, e) for e in np.sort(trace.chosen_NLK[:, layer]).ravel().tolist())


def hottest(trace: RoutingTrace, layer: int, num: int) -> tuple[str, ...]:
    """The experts of a layer that a trace took most, the hottest first."""
    order = np.argsort(-trace.loads()[layer], kind="stable")
    return tuple(name_of(layer, int(e)) for e in order[:num])


class ExpertCache:
    """slots: experts of each layer that are there at a time. expert_bytes: of one expert.

    late: experts that had to be copied when they were needed. uses: of experts so far.
    Raises CapacityError for fewer slots than a token takes experts.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_experts: int,
        experts_per_token: int,
        slots: int,
        expert_bytes: int,
        policy_of: PolicyOf,
    ) -> None:
        if slots < experts_per_token:
            raise CapacityError(
                f"{slots} experts of a layer are held at a time",
                expected=f"at least {experts_per_token}, which one token takes together",
                fix="give more memory, or store experts in fewer bits",
            )
        self.slots = min(slots, num_experts)
        self.expert_bytes = expert_bytes
        self.late = 0
        self._layers = [
            Residents(
                {name_of(layer, e): expert_bytes for e in range(num_experts)},
                slots * expert_bytes,
                policy_of(layer),
            )
            for layer in range(num_layers)
        ]

    @property
    def uses(self) -> int:
        return sum(residents.uses for residents in self._layers)

    @property
    def copies(self) -> int:
        """Those that were late, and those made ahead."""
        return sum(residents.copies for residents in self._layers)

    @property
    def copied_bytes(self) -> int:
        return self.copies * self.expert_bytes

    @property
    def hit_rate(self) -> float:
        """The share of uses that found their expert there; 1 if there was none."""
        return 1.0 - self.late / max(1, self.uses)

    def holds(self, layer: int, expert: int) -> bool:
        return name_of(layer, expert) in self._layers[layer]

    def slot(self, layer: int, expert: int) -> int:
        """Where it lies. Raises InvariantError if it is not there."""
        return self._layers[layer].slot(name_of(layer, expert))

    def use(self, layer: int, experts: Sequence[int]) -> list[Copied]:
        """These are needed together, at most as many as there are slots; returns what has to be copied.

        Policies hear of them in ascending order, whichever is the most probable.
        """
        experts = sorted(experts)
        self._layers[layer].use(*(name_of(layer, e) for e in experts))
        copied = self._bring(layer, experts)
        self.late += len(copied)
        return copied

    def expect(self, layer: int, experts: Sequence[int]) -> list[Copied]:
        """These may be needed soon, at most as many as there are slots; returns what to copy ahead."""
        self._layers[layer].held = frozenset(name_of(layer, e) for e in experts)
        return self._bring(layer, experts)

    def _bring(self, layer: int, experts: Sequence[int]) -> list[Copied]:
        residents, copied = self._layers[layer], list[Copied]()
        for expert in experts:
            name = name_of(layer, expert)
            if name in residents:
                continue
            slot = residents.begin(name)
            if slot is None:
                raise CapacityError(
                    f"{len(experts)} experts of a layer are needed together",
                    expected=f"at most {self.slots}",
                    fix="call for those of fewer tokens at a time",
                )
            residents.end(name, arrived=True)
            copied.append(Copied(expert, slot))
        return copied


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """experts_NLW: int64, [N, L - 1, W], those of layer l + 1 that were expected when a token was in l."""

    experts_NLW: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        predictor: Predictor[Any],
        history: RoutingTrace,
        trace: RoutingTrace,
        num: int,
        next_NLE: NDArray[np.float32] | None = None,
    ) -> Guesses:
        """What a predictor that knows the history says of a trace. next_NLE: what each next router says.

        Raises RangeError unless 1 <= num <= E.
        """
        if not 1 <= num <= trace.num_experts:
            raise RangeError(f"{num} experts are predicted", expected=f"1 to {trace.num_experts}")
        state, num_layers = predictor.init(history), len(trace.layers)
        guessed = np.empty((len(trace), num_layers - 1, num), np.int64)
        for n, path_LK in enumerate(trace.chosen_NLK):
            for layer in range(num_layers - 1):
                next_E = None if next_NLE is None else next_NLE[n, layer]
                seen = Seen(path_LK=path_LK[: layer + 1], next_E=next_E)
                guessed[n, layer] = predictor.predict(state, seen, num)
        return cls(experts_NLW=guessed)

    def accuracy(self, trace: RoutingTrace) -> float:
        """The share of the experts that tokens took which had been expected."""
        hit = trace.chosen_NLK[:, 1:, :, None] == self.experts_NLW[:, :, None]
        return float(hit.any(-1).mean())


def replay(routes: Routes, cache: ExpertCache, guesses: Guesses | None = None) -> ExpertCache:
    """Token after token, layer after layer; returns the cache, which has counted. guesses: fetched ahead."""
    for n, of_layers in enumerate(routes):
        for layer, experts in enumerate(of_layers):
            cache.use(layer, experts)
            if guesses is not None and layer + 1 < len(of_layers):
                cache.expect(layer + 1, guesses.experts_NLW[n, layer].tolist())
    return cache
