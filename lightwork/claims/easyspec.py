"""EasySpec: a drafter whose layers attend in groups, against the same drafter layer by layer.

Real: a drafter of twelve layers that was taught by the built-in model, drafting for it on texts new to both,
and that model drafting for itself.
Simulated: Llama-3 8B drafting on up to eight A100s, tensor parallel or layer parallel, by the strategy that
runs on processes. The publication's code issues kernels one by one from Python, so a stage lasts as long as
the host takes for its operators if that is longer; what a host takes for a layer is measured in the Hopper
claims, and its operators are counted in the library's eager layer. Lengths of drafts are assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lightwork.claims import Lab, Measured, claim
from lightwork.claims._deep_drafter import TEACHER, deep_drafter
from lightwork.claims.hopper import HOST_S_PER_LAYER
from lightwork.cluster import parse_place
from lightwork.cluster.pricing import CostModel
from lightwork.decode.proposers import Proposer
from lightwork.decode.proposers.draft_model import DraftModel
from lightwork.decode.proposers.easy_spec import EasySpec
from lightwork.decode.sampling import Sampling
from lightwork.models import resolve
from lightwork.models.held_out import read_held_out
from lightwork.models.layer_plan import LayerPlan
from lightwork.models.presets import preset
from lightwork.models.work import attention_work, head_work, product_work
from lightwork.parallel.layer_parallel import layer_parallel
from lightwork.runtime.clock import WallClock
from lightwork.runtime.effects import Collective, Compute, Effect, Meta, Price, Work
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.simulated import SimWorld
from lightwork.serve.opening import open_one
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load

# -- a drafter for real

TEXTS, OUTPUT, SHORT_OUTPUT, K, SHARE_OF_TEXT = 24, 120, 30, 4, 2


@cache
def continued(proposer: Proposer, output: int = OUTPUT) -> list[Seq]:
    """Texts of the built-in model, one after the other, drafts having all the rows that they can use."""
    requests = [
        Request(
            prompt=tuple(text.tokens[: len(text.tokens) // SHARE_OF_TEXT].tolist()),
            max_tokens=output,
            sampling=Sampling(temperature=1.0, seed=i),
        )
        for i, text in enumerate(read_held_out(resolve(TEACHER))[:TEXTS])
    ]
    plan = Plan(model=TEACHER, use=(proposer,), threads=1, max_seqs=1)
    engine, model, _ = open_one(plan, Kernel(WallClock()), predict=lambda step: 1.0)
    try:
        return run_load(engine, [0.0] * TEXTS, requests)
    finally:
        engine.close()
        model.close()


def right(seqs: Sequence[Seq]) -> float:
    """The share of drafted tokens that held."""
    return sum(seq.accepted for seq in seqs) / sum(seq.drafted for seq in seqs)


def drafter() -> DraftModel:
    return DraftModel(model=deep_drafter(), k=K)


def itself() -> DraftModel:
    """The target as its own drafter: layer by layer it is always right, so what fails is of the groups."""
    return DraftModel(model=TEACHER, k=K)


@claim(
    "easyspec",
    title="drafted tokens that hold, pairs of layers together, over those of the drafter layer by layer",
    paper="a drop of at most 7 %",
    expect=0.93,
    within=0.0,
    bound="at least",
    mode="real",
)
def right_in_pairs(lab: Lab) -> Measured:
    plain, pairs = right(continued(drafter())), right(continued(EasySpec(inner=drafter())))
    own, stages = right(continued(EasySpec(inner=itself()))), len(LayerPlan.spread(12).groups)
    return Measured(
        pairs / plain,
        f"{pairs:.3f} and {plain:.3f}; {stages} attention stages of 12; the target itself in pairs {own:.3f}",
    )


def _calibration(inner: Callable[[], DraftModel], who: str) -> None:
    @claim(
        "easyspec",
        title=f"drafted tokens of {who} that hold, calibrated, over those without calibration",
        paper="- (errors would add up)",
        expect=1.0,
        within=0.0,
        bound="at least",
        mode="real",
    )
    def calibrated(lab: Lab) -> Measured:
        shares = [right(continued(EasySpec(inner=inner(), calibrate=how))) for how in (True, False)]
        return Measured(shares[0] / shares[1], f"{shares[0]:.3f} and {shares[1]:.3f}")


_calibration(drafter, "the drafter")
_calibration(itself, "the target itself")


@claim(
    "easyspec",
    title="drafted tokens of the target itself that hold without calibration, texts of 120 tokens over 30",
    paper="- (errors would add up)",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def longer_texts(lab: Lab) -> Measured:
    lengths = (SHORT_OUTPUT, OUTPUT)
    short, long = (right(continued(EasySpec(inner=itself(), calibrate=False), n)) for n in lengths)
    calibrated = [right(continued(EasySpec(inner=itself()), n)) for n in lengths]
    return Measured(
        long / short,
        f"{long:.3f} and {short:.3f}; calibrated {calibrated[1]:.3f} and {calibrated[0]:.3f}",
    )


# -- at the publication's scale

DRAFTER, CONTEXT, DTYPE, DRAFT = "llama-3-8b", 512, "bfloat16", 5
ATTENTION_OPERATORS, MLP_OPERATORS = 26, 14
"""That an eager layer starts for one row, each with the norm before and the sum behind; counted in
transformers 5.24 by torch's dispatch, without views."""
SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """Layers of the drafter for one row, each stage as long as the devices take or the host that issues it.

    attention_ranks, mlp_ranks: that share a layer's.
    """

    ranks: tuple[int, ...]
    attention_ranks: int
    mlp_ranks: int

    async def attend(self, x: Meta, mine: Sequence[int], num: int) -> Meta:
        for _ in mine:
            await Compute(attention(self.attention_ranks), None, (), "attention")
            if self.attention_ranks > 1:
                await Collective("all_reduce", self.ranks, x)
        return Meta((num, *x.shape), DTYPE)

    async def follow(self, x: Meta, group: Sequence[int], added: Sequence[Any]) -> Meta:
        for _ in group:
            await Compute(mlp(self.mlp_ranks), None, (), "mlp")
            if self.mlp_ranks > 1:
                await Collective("all_reduce", self.ranks, x)
        return x

    async def run(self, me: int, plan: LayerPlan) -> None:
        """A pass of one row: all layers, and the head."""
        x = Meta((1, preset(DRAFTER).hidden_size), DTYPE)
        await layer_parallel(me, len(self.ranks), x, plan, self)
        await Compute([head_work(preset(DRAFTER), 1, dtype=DTYPE, tp=self.mlp_ranks)], None, (), "head")


def attention(tp: int) -> list[Work]:
    """Of one layer."""
    spec = preset(DRAFTER)
    products = product_work(spec, 1, dtype=DTYPE, tp=tp)
    (keys,) = attention_work(spec, [(CONTEXT, 1)], dtype=DTYPE, tp=tp)
    ops, moved = keys.ops / spec.num_layers, keys.bytes / spec.num_layers
    return [*products["qkv"], Work(kind="attention", dtype=DTYPE, ops=ops, bytes=moved), *products["out"]]


def mlp(tp: int) -> list[Work]:
    """Of one layer."""
    products = product_work(preset(DRAFTER), 1, dtype=DTYPE, tp=tp)
    return [*products["up"], *products["down"]]


@cache
def pass_s(size: int, n: int, attention_ranks: int, mlp_ranks: int) -> float:
    """Seconds of a pass on n devices by groups of `size` layers."""
    costs = CostModel(parse_place(f"sim:a100x{n}"))
    operator_s = HOST_S_PER_LAYER / (ATTENTION_OPERATORS + MLP_OPERATORS)
    operators = {"attention": ATTENTION_OPERATORS, "mlp": MLP_OPERATORS, "head": 2}

    def price(effect: Effect, rank: int) -> Price:
        if isinstance(effect, Compute):
            return Price((), max(costs.seconds(effect.work), operators[effect.name] * operator_s))
        exchange = costs.price(effect, rank)
        return Price(exchange.demands, exchange.latency_s + operator_s)

    kernel = Kernel()
    world = SimWorld(kernel, price, costs.resources())
    ranks = tuple(range(n))
    layers = Priced(ranks=ranks, attention_ranks=attention_ranks, mlp_ranks=mlp_ranks)
    plan = LayerPlan.spread(preset(DRAFTER).num_layers, size)
    for rank in ranks:
        world.launch(rank, layers.run(rank, plan))
    world.run()
    return kernel.now()


def tensor_parallel_s(n: int) -> float:
    """Of a pass of one row."""
    return pass_s(1, n, n, n)


def layer_parallel_s(n: int, draft: int = DRAFT) -> float:
    """Of a pass of one row, the mean over a draft, whose first is exact; MLPs whole or shared, as is best."""
    return min((pass_s(1, n, 1, ranks) + (draft - 1) * pass_s(n, n, 1, ranks)) / draft for ranks in (1, n))


@claim(
    "easyspec",
    title="drafting by 8B, groups of four layers on four A100s, over the best of tensor parallel",
    paper="up to 1.62x",
    expect=1.62,
    within=0.25,
)
def drafting(lab: Lab) -> Measured:
    sizes = {n: tensor_parallel_s(n) for n in SIZES}
    best = min(sizes, key=lambda n: sizes[n])
    pairs, fours = layer_parallel_s(2), layer_parallel_s(4)
    told = ", ".join(f"{n}: {s * 1e3:.1f}" for n, s in sizes.items())
    note = f"ms a token, tensor parallel {told}; layer parallel 2: {pairs * 1e3:.1f}, 4: {fours * 1e3:.1f}"
    return Measured(sizes[best] / fours, f"{note}; drafts of {DRAFT}")


@claim(
    "easyspec",
    title="8B, time of a token on eight A100s over the better of one and two, tensor parallel",
    paper="not better",
    expect=1.0,
    within=0.0,
    bound="at least",
)
def eight_are_no_better(lab: Lab) -> Measured:
    few = min(tensor_parallel_s(n) for n in (1, 2))
    return Measured(tensor_parallel_s(8) / few, f"{few * 1e3:.1f} ms on few")
