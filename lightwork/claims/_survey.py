"""What the techniques of the MoE survey do to one small trained model: experts held and copied, the speed
that its routes would have with Mixtral's experts, and the loss on text that is new to it.

Bytes are of its own experts, in float32 unless compressed. Speed is simulated: one token at a time on an
A100 whose experts lie in host memory, priced as if each expert were one of Mixtral-8x7B in float32, or as
much smaller as compression makes it; computing, which copies dwarf, is priced as before it.

N tokens  L layers  E experts of a layer  K experts that a token takes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from math import log, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightwork import models
from lightwork.claims._chats import one_thread
from lightwork.claims._moe import folder, texts
from lightwork.cluster import parse_place
from lightwork.cluster.pricing import CostModel
from lightwork.kernels.rows import Rows
from lightwork.memory.expert_cache import ExpertCache, Guesses, PolicyOf, Routes, hottest, names_used
from lightwork.memory.expert_fetching import TokenWork, decode
from lightwork.memory.residencies.activation_aware import ActivationAware
from lightwork.memory.residencies.belady import Belady
from lightwork.memory.residencies.lfu import LFU
from lightwork.memory.residencies.lru import LRU
from lightwork.memory.residencies.static_hot import StaticHot
from lightwork.models.compressions import Compression, Usage
from lightwork.models.held_out import Text, perplexity
from lightwork.models.mixture import Counted, LookAhead, Mixture, through
from lightwork.models.model import Model
from lightwork.models.presets import preset
from lightwork.models.routing import Recorder, RoutingTrace
from lightwork.models.skips import Skip
from lightwork.models.spec import ModelSpec
from lightwork.models.work import around_work, expert_work, head_work, product_work
from lightwork.runtime.effects import DTYPE_BYTES
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.simulated import SimWorld

K, HELD = 2, 8
"""Experts per token, and of each layer in fast memory where there is no room for all."""
HISTORY, NEW = 24, 8
"""Texts that techniques learn from, and those that they are judged on."""
PLACE, SHAPE, DTYPE, CONTEXT = "sim:a100", "mixtral-8x7b", "float32", 1024


def model() -> Model:
    """Opened anew, since what is tried changes it."""
    opened = models.load(str(folder(K)))
    assert isinstance(opened, Model)
    return opened


def _texts(name: str, num: int, *, new: bool) -> list[Text]:
    """With every token but the first to be predicted."""
    drawn = islice(texts(name, "heldout" if new else "train"), num)
    return [Text(np.array(t), np.arange(len(t)) > 0) for t in drawn]


def history() -> list[Text]:
    return _texts("moe survey, before", HISTORY, new=False)


def unseen() -> list[Text]:
    return _texts("moe survey", NEW, new=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Of a model over texts. loss: nats per token. next_NLE: what each next router said one layer early.

    gates_NLK: of the experts in trace.
    """

    loss: float
    trace: RoutingTrace
    next_NLE: NDArray[np.float32]
    gates_NLK: NDArray[np.float32]
    usage: Usage

    def routes(self, skip: Skip | None = None) -> Routes:
        """Without what is skipped."""
        routes: list[list[list[int]]] = self.trace.chosen_NLK.tolist()
        if skip is None:
            return routes
        kept_RK = skip.keep(torch.from_numpy(self.gates_NLK).flatten(0, 1))
        kept_NLK = kept_RK.view(self.gates_NLK.shape).tolist()
        return [
            [[e for e, stays in zip(*pair, strict=True) if stays] for pair in zip(*of_token, strict=True)]
            for of_token in zip(routes, kept_NLK, strict=True)
        ]


@one_thread()
def run(over: Model, judged: list[Text], skip: Skip | None = None) -> Run:
    recorder, counted = Recorder(), Counted(over.spec)
    gates: dict[int, list[NDArray[np.float32]]] = {i: [] for i in sorted(over.spec.moe)}

    def routed(layer: int, probable_RE: Tensor, chosen_RK: Tensor) -> None:
        recorder(layer, probable_RE, chosen_RK)
        gates[layer].append(probable_RE.gather(1, chosen_RK).numpy())

    mixture = Mixture(weights=over.weights, spec=over.spec, skip=skip, routed=routed, watch=counted)
    look = LookAhead(mixture)
    over.hidden = through(over, look)
    loss = log(perplexity(over, judged))
    gates_NLK = np.stack([np.concatenate(rows) for rows in gates.values()], 1)
    return Run(
        loss=loss,
        trace=recorder.trace(),
        next_NLE=look.next_NLE(),
        gates_NLK=gates_NLK,
        usage=counted.usage,
    )


@cache
def before() -> Run:
    """Over what techniques learn from."""
    return run(model(), history())


@cache
def plain() -> Run:
    """Over what they are judged on."""
    return run(model(), unseen())


def after(compression: Compression, usage: Usage) -> tuple[Model, int]:
    """The model compressed by some usage, and the bytes of its experts."""
    opened = model()
    found = compression.compress(opened.weights, opened.spec, usage)
    return Model(found.spec, found.weights, opened.tokenizer, {}, "cpu"), found.expert_bytes


def compressed(compression: Compression) -> tuple[Run, int]:
    """The model compressed by its own usage over what it is judged on, and the bytes of its experts."""
    small, nbytes = after(compression, before().usage)
    return run(small, unseen()), nbytes


@one_thread()
def logits(of: Model, text: Text, num: int) -> NDArray[np.float32]:
    """Of the first so many tokens of a text, one after another."""
    kv, whole = of.new_kv(1, num), Rows.of_text(text.tokens[:num], num)
    rows = [
        replace(
            whole,
            tokens=whole.tokens[at : at + 1],
            positions=whole.positions[at : at + 1],
            slots=whole.slots[at : at + 1],
            seqs=whole.seqs[:1],
            index=whole.index[at : at + 1],
            ancestors=whole.ancestors[:1],
            known=np.array([at + 1]),
            scored=np.zeros(1, np.int64),
        )
        for at in range(num)
    ]
    return np.concatenate([of.logits(row, kv) for row in rows])


@one_thread()
def moved(compression: Compression, usage: Usage) -> float:
    """How far a compression moves logits, root of the mean square: finer than a small change of the loss."""
    small, whole, squares = after(compression, usage)[0], model(), []
    for text in unseen():
        rows = Rows.of_text(text.tokens, len(text.tokens))
        got, expected = (of.logits(rows, of.new_kv(1, len(rows.tokens))) for of in (small, whole))
        squares.append(float(np.square(got - expected).mean()))
    return sqrt(float(np.mean(squares)))


def drawn_usages(seed: int, num: int = 3) -> Iterator[Usage]:
    """That say nothing."""
    rng, shape = np.random.default_rng(seed), before().usage.loads_LE.shape
    for _ in range(num):
        drawn = rng.random(shape)
        yield Usage(loads_LE=(1e6 * drawn).astype(np.int64), outputs_LE=drawn)


def at_random(compression: Compression, seed: int) -> float:
    """The loss if usage says nothing: the mean of some draws."""
    losses = [run(after(compression, usage)[0], unseen()).loss for usage in drawn_usages(seed)]
    return float(np.mean(losses))


def by_loads(compression: Compression) -> float:
    """The loss if what experts add is taken to be how often they are used."""
    loads = before().usage.loads_LE
    small, _ = after(compression, Usage(loads_LE=loads, outputs_LE=loads.astype(np.float64)))
    return run(small, unseen()).loss


# -- caches


def cache_of(
    trace: RoutingTrace, policy_of: PolicyOf, *, slots: int = HELD, expert_bytes: int = 0
) -> ExpertCache:
    """expert_bytes: those of the model if not given."""
    return ExpertCache(
        num_layers=len(trace.layers),
        num_experts=trace.num_experts,
        experts_per_token=trace.chosen_NLK.shape[2],
        slots=slots,
        expert_bytes=expert_bytes or expert_size(),
        policy_of=policy_of,
    )


@cache
def expert_size() -> int:
    """Bytes of one of the model's experts."""
    layer = model().weights.layers[0]
    return layer.up[0].nbytes + layer.down[0].nbytes


def policies(slots: int, seen: RoutingTrace, trace: RoutingTrace) -> dict[str, PolicyOf]:
    """By name. seen: what is known beforehand; Belady knows the trace itself."""
    return {
        "LRU": lambda layer: LRU(),
        "LFU": lambda layer: LFU(),
        "activation-aware": lambda layer: ActivationAware(),
        "static hot set": lambda layer: StaticHot(hot=hottest(seen, layer, slots - K)),
        "Belady": lambda layer: Belady(trace=names_used(trace, layer)),
    }


# -- speed


@cache
def token_work(shape: str = SHAPE, dtype: str = DTYPE) -> TokenWork:
    """Of one token behind CONTEXT others, in a layer of a well-known model."""
    spec = preset(shape)
    one = replace(spec, num_layers=1, moe=frozenset(), windowed=frozenset())
    products = product_work(one, 1, dtype=dtype)
    around = (*products["qkv"], *products["out"], *around_work(one, [(CONTEXT, 1)], dtype=dtype))
    expert = expert_work(spec, [1], dtype=dtype)
    return TokenWork(around=around, expert=(expert,), head=(head_work(spec, 1, dtype=dtype),))


def large_expert_bytes(shape: str = SHAPE, dtype: str = DTYPE) -> int:
    """Of an expert of a well-known model."""
    spec: ModelSpec = preset(shape)
    return spec.hidden_size * spec.ffn_size * 3 * DTYPE_BYTES[dtype]


def seconds(routes: Routes, held: ExpertCache, work: TokenWork, guesses: Guesses | None = None) -> float:
    """Of decoding these routes. held: a new cache, of experts as large as the work says."""
    costs = CostModel(parse_place(PLACE))
    world = SimWorld(Kernel(), costs.price, costs.resources())
    world.launch(0, decode(routes, held, work, guesses))
    world.run()
    return world.kernel.now()


# -- the table


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One technique. held_bytes: of experts in fast memory. copied_bytes: per token. loss: nats per token."""

    held_bytes: int
    copied_bytes: float
    tokens_per_s: float
    loss: float

    def line(self) -> str:
        added = self.loss - plain().loss
        return (
            f"experts {self.held_bytes / 1e6:.2f} MB held, {self.copied_bytes / 1e3:.0f} kB copied a token, "
            f"{self.tokens_per_s:.3g} tokens/s, loss {plain().loss:.4f} {added:+.4f}"
        )


def row(
    found: Run,
    policy_of: PolicyOf,
    *,
    slots: int = HELD,
    share: float = 1.0,
    skip: Skip | None = None,
    guesses: Guesses | None = None,
) -> Row:
    """share: of its bytes that an expert has left."""
    routes = found.routes(skip)
    held = cache_of(found.trace, policy_of, slots=slots, expert_bytes=int(share * large_expert_bytes()))
    took_s = seconds(routes, held, token_work(), guesses)
    own_bytes = int(share * expert_size())
    return Row(
        held_bytes=held.slots * own_bytes * len(found.trace.layers),
        copied_bytes=held.copies * own_bytes / len(routes),
        tokens_per_s=len(routes) / took_s,
        loss=found.loss,
    )


def lru(layer: int) -> LRU:
    return LRU()


@cache
def baseline() -> Row:
    """The model as it is, half of its experts held by LRU."""
    return row(plain(), lru)


def guesses_of(predictor: Any, num: int = K) -> Guesses:
    """What a predictor that knows `before` says of `plain`."""
    return Guesses.of(predictor, before().trace, plain().trace, num, plain().next_NLE)


def listed(rows: Sequence[tuple[str, Row]]) -> str:
    return "; ".join(f"{name}: {found.line()}" for name, found in rows)
