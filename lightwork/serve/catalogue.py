"""Applications as chains of blocks of several layers, for simulations: shapes, never weights.

A fine-tune of a base is an adapter (all layers shared), one whose last layers were tuned, or one tuned as a
whole, of which some blocks may be equivalent to the base's. Chains are cut only where fine-tunes differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from lightwork.models.presets import preset
from lightwork.models.spec import ModelSpec
from lightwork.models.work import forward_work
from lightwork.runtime.effects import DTYPE_BYTES, Work

DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """An application. base: a model's shape by name. tuned: of its layers, how many at the end are its own,
    all if it was tuned as a whole. rank: of its adapter, 0 without. losses: similarity lost when the base
    stands in for one of its blocks, by quarter of the layers, first to last; None where they are not
    equivalent."""

    name: str
    base: str
    tuned: int = 0
    rank: int = 0
    losses: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Layers of a model that one instance computes. spec: of these layers alone. first, whole: the number
    of the first, and of all layers of the model."""

    spec: ModelSpec
    first: int
    whole: int

    @property
    def head(self) -> bool:
        """Whether it chooses tokens, too."""
        return self.first + self.spec.num_layers == self.whole

    @property
    def nbytes(self) -> int:
        spec = self.spec
        tables = spec.vocab_size * spec.hidden_size * ((self.first == 0) + (self.head and not spec.tied))
        return (spec.num_layers * spec.attention_params + spec.mlp_params() + tables) * DTYPE_BYTES[DTYPE]

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return self.spec.kv_bytes_per_token(DTYPE)

    @property
    def hidden_bytes(self) -> int:
        """Of one row between two blocks."""
        return self.spec.hidden_size * DTYPE_BYTES[DTYPE]

    def work(self, chunks: Sequence[tuple[int, int]], scored: int, ranks: Sequence[int]) -> tuple[Work, ...]:
        """Of a pass. scored: rows whose token is chosen, where the block has the head. ranks: of the
        adapters in it, each read once."""
        done = forward_work(self.spec, chunks, scored if self.head else 0, dtype=DTYPE)
        if not ranks:
            return done
        rows = sum(count for _, count in chunks)
        params = 4 * self.spec.hidden_size * self.spec.num_layers
        adapters = Work(
            kind="vector",
            dtype=DTYPE,
            ops=2.0 * rows * params * max(ranks),
            bytes=params * sum(ranks) * DTYPE_BYTES[DTYPE],
            rows=rows,
            launches=4 * self.spec.num_layers,
        )
        return (*done, adapters)


@dataclass(slots=True)
class Catalogue:
    """blocks: by number. chains: block numbers by application. stand_ins: of a block, others and what they
    lose. ranks: of adapters, by application."""

    blocks: list[Block] = field(default_factory=list)
    chains: dict[str, tuple[int, ...]] = field(default_factory=dict)
    stand_ins: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    def preferred(self, name: str, budget: float) -> tuple[int, ...]:
        """What computes an application's rows with stand-ins where a budget of similarity allows."""
        chain = []
        for block in self.chains[name]:
            for other, loss in self.stand_ins.get(block, ()):
                if loss <= budget:
                    budget, block = budget - loss, other
                    break
            chain.append(block)
        return tuple(chain)

    def _block(self, spec: ModelSpec, first: int, last: int) -> int:
        self.blocks.append(Block(replace(spec, num_layers=last - first), first, spec.num_layers))
        return len(self.blocks) - 1


def apart(tunes: Sequence[FineTune]) -> Catalogue:
    """One whole model for each application."""
    made = Catalogue()
    for tune in tunes:
        spec = preset(tune.base)
        made.chains[tune.name] = (made._block(spec, 0, spec.num_layers),)
        made.ranks[tune.name] = tune.rank
    return made


def parameters_shared(tunes: Sequence[FineTune]) -> Catalogue:
    """Whole models; adapters of one base share one."""
    made = Catalogue()
    of_base: dict[str, int] = {}
    for tune in tunes:
        spec = preset(tune.base)
        own = tune.tuned or tune.base not in of_base
        block = made._block(spec, 0, spec.num_layers) if own else of_base[tune.base]
        if not tune.tuned:
            of_base[tune.base] = block
        made.chains[tune.name] = (block,)
        made.ranks[tune.name] = tune.rank
    return made


def in_blocks(tunes: Sequence[FineTune]) -> Catalogue:
    """Blocks shared wherever fine-tunes agree, with the base's as stand-ins where those are equivalent."""
    made = Catalogue()
    shared: dict[tuple[str, int, int], int] = {}
    for tune in tunes:
        spec = preset(tune.base)
        cuts = _cuts(tune.base, tunes)
        chain = []
        for first, last in pairwise(cuts):
            own = last > spec.num_layers - tune.tuned
            if own or (tune.base, first, last) not in shared:
                block = made._block(spec, first, last)
                if not own:
                    shared[tune.base, first, last] = block
            else:
                block = shared[tune.base, first, last]
            chain.append(block)
        made.chains[tune.name] = tuple(chain)
        made.ranks[tune.name] = tune.rank
    _relate(made, tunes, shared)
    return made


def _cuts(base: str, tunes: Sequence[FineTune]) -> list[int]:
    """Layers at which chains of a base are cut: where last layers begin to differ, and where the blocks of
    whole fine-tunes cease to be equivalent."""
    layers = preset(base).num_layers
    found = {0, layers}
    for tune in tunes:
        if tune.base == base:
            found.add(layers - tune.tuned)
            parts = len(tune.losses)
            found |= {layers * i // parts for i in range(1, parts) if tune.losses[i] != tune.losses[i - 1]}
    return sorted(found)


def _relate(made: Catalogue, tunes: Sequence[FineTune], shared: Mapping[tuple[str, int, int], int]) -> None:
    for tune in tunes:
        spec = preset(tune.base)
        for block, (first, last) in zip(
            made.chains[tune.name], pairwise(_cuts(tune.base, tunes)), strict=True
        ):
            loss = tune.losses[first * len(tune.losses) // spec.num_layers] if tune.losses else None
            base = shared.get((tune.base, first, last))
            if loss is not None and base is not None and base != block:
                made.stand_ins.setdefault(block, []).append((base, loss))
