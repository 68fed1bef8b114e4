"""The techniques of the MoE inference survey, each with its bytes, its speed and what it does to the loss.

The survey publishes no figure of its own, so bars are ours: orders that its taxonomy takes for granted. On
the small trained model of `_survey`, whose columns every note has; at the shapes of Mixtral-8x7B,
Qwen3-235B-A22B and DeepSeek-V3 simulated, with routes at random: orders only, not single numbers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from statistics import fmean

import numpy as np

from lightwork.claims import Lab, Measured, claim
from lightwork.claims import _survey as survey
from lightwork.claims._routes import iid_trace, texts_trace
from lightwork.cluster import parse_place
from lightwork.cluster.pricing import CostModel
from lightwork.memory.expert_cache import replay
from lightwork.memory.expert_sites import ExpertSites
from lightwork.memory.offloaded_experts import OffloadedExperts
from lightwork.memory.predictors.affinity_ahead import AffinityAhead
from lightwork.memory.predictors.alike_paths import AlikePaths
from lightwork.memory.predictors.most_used import MostUsed
from lightwork.memory.predictors.pre_gate import PreGate
from lightwork.models.compressions import Compression
from lightwork.models.compressions.low_rank_experts import LowRankExperts
from lightwork.models.compressions.merge_experts import MergeExperts
from lightwork.models.compressions.mixed_bits import MixedBits
from lightwork.models.compressions.prune_experts import PruneExperts
from lightwork.models.mixture import Mixture, through
from lightwork.models.presets import preset
from lightwork.models.skips import Skip
from lightwork.models.skips.adaptive_top_k import AdaptiveTopK
from lightwork.models.skips.expert_top_p import ExpertTopP
from lightwork.parallel.expert_dispatch import ExpertDispatch
from lightwork.parallel.expert_placement import ExpertPlacement
from lightwork.parallel.traced_shard import Decoding, simulate
from lightwork.plan.replicate_experts import replicate

NAME = "moe_survey"
SLOTS = (3, 4, 6, 8, 12)
"""Of 16 experts of each layer."""
FEWER = 12
"""Experts of each layer that are left by what makes them fewer."""
ALL_IN_4_BITS = 5.0
"""Mean bits of a weight when all experts are: with scales, and what fills blocks of 64 outputs up."""
MEAN_BITS, RANK = 7.0, 16
TOKENS = 64
"""Of a text, one after another, for real."""
SHAPES = ("mixtral-8x7b", "qwen3-235b-a22b", "deepseek-v3")


# -- who stays, on the trained model


@cache
def _hit_rates(slots: int) -> dict[str, float]:
    trace = survey.plain().trace
    routes = survey.plain().routes()
    return {
        name: replay(routes, survey.cache_of(trace, policy_of, slots=slots)).hit_rate
        for name, policy_of in survey.policies(slots, survey.before().trace, trace).items()
    }


def _at_half() -> str:
    trace = survey.plain().trace
    found = survey.policies(survey.HELD, survey.before().trace, trace)
    return survey.listed([(name, survey.row(survey.plain(), policy)) for name, policy in found.items()])


@claim(
    NAME,
    title=f"hits of an activation-aware cache over LRU's, {SLOTS} of 16 experts, the smallest",
    paper="- (our bar 1)",
    expect=1.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def activation_aware(lab: Lab) -> Measured:
    rates = {slots: _hit_rates(slots) for slots in SLOTS}
    ratios = {slots: found["activation-aware"] / found["LRU"] for slots, found in rates.items()}
    by_size = ", ".join(f"{ratio:.3f} of {slots}" for slots, ratio in ratios.items())
    return Measured(min(ratios.values()), f"{by_size}. {survey.HELD} held: {_at_half()}")


@claim(
    NAME,
    title="hits of Belady's cache, which knows the trace, over the best of the others', the smallest",
    paper="- (no policy beats it)",
    expect=1.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def belady(lab: Lab) -> Measured:
    lowest, notes = np.inf, []
    for slots in SLOTS:
        rates = {**_hit_rates(slots)}
        bound = rates.pop("Belady")
        lowest = min(lowest, bound / max(rates.values()))
        others = ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items())
        notes.append(f"{slots} of 16: {bound:.3f}, {others}")
    return Measured(lowest, "; ".join(notes))


# -- what comes next


@claim(
    NAME,
    title="right guesses of pre-gate over affinity, affinity over the most used, those over chance: least",
    paper="- (in this order; our bar 1)",
    expect=1.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def guesses(lab: Lab) -> Measured:
    """As many are guessed as a token takes. Alike paths, which see more layers, are in the note."""
    trace = survey.plain().trace
    predictors = {"pre-gate": PreGate(), "affinity": AffinityAhead(), "most used": MostUsed()}
    right = {name: survey.guesses_of(p).accuracy(trace) for name, p in predictors.items()}
    right["chance"] = survey.K / trace.num_experts
    paths = survey.guesses_of(AlikePaths()).accuracy(trace)
    values = [*right.values()]
    lowest = min(a / b for a, b in pairwise(values))
    note = ", ".join(f"{name} {share:.3f}" for name, share in right.items())
    return Measured(lowest, f"{note}; alike paths {paths:.3f}")


@claim(
    NAME,
    title=f"late copies with what pre-gate expects fetched ahead over LRU alone, {survey.HELD} of 16 held",
    paper="- (our bar 1)",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def fetched_ahead(lab: Lab) -> Measured:
    """A guess hides a copy behind a layer's computing, and a wrong one takes the link: with Mixtral's experts
    over PCIe a copy takes as long as the computing of dozens of layers, so speed falls, as the note says."""
    found = survey.plain()
    rows, late = [("LRU alone", survey.baseline())], []
    for predictor in (None, PreGate(), AffinityAhead(), AlikePaths()):
        guesses = None if predictor is None else survey.guesses_of(predictor)
        late.append(replay(found.routes(), survey.cache_of(found.trace, survey.lru), guesses).late)
        if guesses is not None:
            rows.append((type(predictor).__name__, survey.row(found, survey.lru, guesses=guesses)))
    of_each = ", ".join(f"{n / len(found.trace):.2f}" for n in late)
    return Measured(late[1] / late[0], f"late a token {of_each}; {survey.listed(rows)}")


@claim(
    NAME,
    title="numbers of the trained model's logits that differ with 2, 3, 8 or 15 of 16 experts in the arena",
    paper="- (0)",
    expect=0.0,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def same_bits(lab: Lab) -> Measured:
    model, (text, *_) = survey.model(), survey.unseen()
    expected = survey.logits(model, text, TOKENS)
    differing, copied = 0, []
    for slots in (2, 3, 8, 15):
        experts = OffloadedExperts(model.weights, model.spec, slots)
        mixture = Mixture(weights=model.weights, spec=model.spec, bring=experts.bring)
        model.hidden = through(model, mixture)
        differing += int((survey.logits(model, text, TOKENS) != expected).sum())
        copied.append(f"{experts.cache.copied_bytes / TOKENS / 1e3:.0f} kB with {slots}")
    return Measured(differing, f"{expected.size} each; copied a token: {', '.join(copied)}")


# -- fewer and smaller experts


def _compressed(compression: Compression) -> survey.Row:
    """Half of the experts that are left in fast memory."""
    found, nbytes = survey.compressed(compression)
    left = found.trace.num_experts
    share = nbytes / (survey.expert_size() * left * len(found.trace.layers))
    return survey.row(found, survey.lru, slots=max(survey.K, left // 2), share=share)


def _beside_plain(row: survey.Row) -> str:
    return f"{row.line()}; before {survey.baseline().line()}"


@claim(
    NAME,
    title="bytes of the trained model's experts in float32 over those in 4 bits",
    paper="- (our bar 4)",
    expect=4.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def four_bits(lab: Lab) -> Measured:
    row = _compressed(MixedBits(mean_bits=ALL_IN_4_BITS))
    return Measured(survey.baseline().held_bytes / row.held_bytes, _beside_plain(row))


@claim(
    NAME,
    title="how far mixed bits move logits over the same bytes spent on experts at random",
    paper="- (our bar 1)",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def mixed_bits(lab: Lab) -> Measured:
    """Losses are too near each other to be told apart: they are in the note."""
    mixed = MixedBits(mean_bits=MEAN_BITS)
    moved = survey.moved(mixed, survey.before().usage)
    blind = fmean(survey.moved(mixed, usage) for usage in survey.drawn_usages(lab.seed))
    four, eight = (survey.moved(MixedBits(mean_bits=b), survey.before().usage) for b in (ALL_IN_4_BITS, 9.5))
    note = f"{moved:.4f} and {blind:.4f} (all in 4 bits {four:.4f}, in 8 {eight:.4f}); "
    return Measured(moved / blind, note + _beside_plain(_compressed(mixed)))


@claim(
    NAME,
    title=f"loss that pruning to {FEWER} of 16 experts adds over pruning at random",
    paper="- (our bar 1)",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def pruning(lab: Lab) -> Measured:
    row, plain = _compressed(PruneExperts(keep=FEWER)), survey.plain().loss
    blind = survey.at_random(PruneExperts(keep=FEWER), lab.seed)
    note = f"{_beside_plain(row)}; at random {blind - plain:+.4f}"
    return Measured((row.loss - plain) / (blind - plain), note)


@claim(
    NAME,
    title=f"loss that merging to {FEWER} of 16 experts adds over merging as if usage were not known",
    paper="- (our bar 1)",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def merging(lab: Lab) -> Measured:
    """Beside it, what leaving those out adds that are merged into others."""
    row, plain = _compressed(MergeExperts(keep=FEWER)), survey.plain().loss
    blind = survey.at_random(MergeExperts(keep=FEWER), lab.seed)
    dropped = survey.by_loads(PruneExperts(keep=FEWER))
    note = f"{_beside_plain(row)}; at random {blind - plain:+.4f}; instead dropped {dropped - plain:+.4f}"
    return Measured((row.loss - plain) / (blind - plain), note)


@claim(
    NAME,
    title="loss that low-rank differences of half the bytes add, in nats",
    paper="- (our bar 0.3)",
    expect=0.3,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def low_rank(lab: Lab) -> Measured:
    row = _compressed(LowRankExperts(rank=RANK))
    return Measured(row.loss - survey.plain().loss, _beside_plain(row))


def _skipped(skip: Skip) -> tuple[survey.Row, float]:
    """And the share of experts that are left out."""
    found = survey.run(survey.model(), survey.unseen(), skip)
    left = int(found.usage.loads_LE.sum()) / found.trace.chosen_NLK.size
    return survey.row(found, survey.lru, skip=skip), 1 - left


@claim(
    NAME,
    title="loss that adaptive top-k adds, in nats, where it leaves out a tenth of the experts or more",
    paper="- (our bar 0.05)",
    expect=0.05,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def adaptive(lab: Lab) -> Measured:
    row, skipped = _skipped(AdaptiveTopK(threshold=0.3))
    other, also = _skipped(ExpertTopP(share=0.6))
    note = f"{skipped:.0%} left out: {_beside_plain(row)}; top-p 0.6, {also:.0%} left out: {other.line()}"
    added = row.loss - survey.plain().loss
    return Measured(added if skipped >= 0.1 else np.inf, note)


# -- where experts are computed


@claim(
    NAME,
    title="Mixtral's experts of a layer, half away: where each is sooner done over copying all, largest",
    paper="- (our bar 1)",
    expect=1.0,
    within=0.0,
    bound="at most",
)
def where_it_lies(lab: Lab) -> Measured:
    """An A100 and the processor of two cores that `sim:cpu` is. Rows are routed at random."""
    spec = preset("mixtral-8x7b")
    device, host = (CostModel(parse_place(place)) for place in (survey.PLACE, "sim:cpu"))
    sites = ExpertSites(spec=spec, device=device, host=host)
    rng, ratios = np.random.default_rng(lab.seed), {}
    for batch in (1, 4, 16, 64, 256):
        split_s = copied_s = 0.0
        for _ in range(32):
            rows = np.bincount(rng.random((batch, 8)).argsort(1)[:, :2].ravel(), minlength=8).tolist()
            split_s += sites.split(rows, here=range(4)).seconds
            copied_s += max(sum(sites.device_s(n) for n in rows if n), sites.copied_s(rows, range(4)))
        ratios[batch] = split_s / copied_s
    crossover = next(rows for rows in range(1, 4096) if sites.moves(rows))
    by_batch = ", ".join(f"{ratio:.2f} of {batch} tokens" for batch, ratio in ratios.items())
    return Measured(max(ratios.values()), f"{by_batch}; an expert is copied from {crossover} rows on")


# -- ranks


@claim(
    NAME,
    title="busiest rank over the mean, hot experts of a Zipf router replicated, the largest of three shapes",
    paper="- (our bar 1.2 with a quarter more experts)",
    expect=1.2,
    within=0.0,
    bound="at most",
    unit="",
)
def replication(lab: Lab) -> Measured:
    """Loads fall as one over the rank of an expert. On the trained model's own routes: in the note."""
    found, notes = [], []
    rng = np.random.default_rng(lab.seed)
    for experts, ranks in ((64, 8), (128, 16), (256, 32)):
        rows = rng.permutation(1.0 / np.arange(1, experts + 1)).tolist()
        once, more = replicate(rows, ranks, most_extra=0.0), replicate(rows, ranks)
        found.append(more.imbalance(rows))
        notes.append(
            f"{experts} on {ranks}: {once.imbalance(rows):.2f} to {found[-1]:.2f}, {more.extra:.0%} more"
        )
    of_layers = []
    for known, new in zip(survey.before().trace.loads(), survey.plain().trace.loads(), strict=True):
        plan = replicate(known.tolist(), 4)
        of_layers.append((replicate(known.tolist(), 4, most_extra=0.0).imbalance(new), plan.imbalance(new)))
    once, more = np.mean(of_layers, 0)
    notes.append(f"trained, planned on other text, 4 ranks: {once:.2f} to {more:.2f}")
    return Measured(max(found), "; ".join(notes))


# -- at the survey's shapes


def _decoded(shape: str, seed: int) -> tuple[float, float]:
    """Seconds of a token with half of the experts held, and the copies at the bandwidth of the link."""
    spec = preset(shape)
    layers, k = len(spec.moe), spec.experts_per_token
    trace = texts_trace(2, 12, layers, spec.num_experts, k=k, seed=seed)
    held = survey.cache_of(
        replace(trace, layers=tuple(sorted(spec.moe))),
        survey.lru,
        slots=spec.num_experts // 2,
        expert_bytes=survey.large_expert_bytes(shape, "bfloat16"),
    )
    took_s = survey.seconds(trace.chosen_NLK.tolist(), held, survey.token_work(shape, "bfloat16"))
    link = parse_place(survey.PLACE).device.memory("host").read_bytes_per_s
    return took_s / len(trace), held.copied_bytes / link / len(trace)


@claim(
    NAME,
    title="a token with experts in host memory over its copies at the link's bandwidth, farthest of 3 shapes",
    paper="- (about 1)",
    expect=1.0,
    within=0.25,
)
def offload_is_the_link(lab: Lab) -> Measured:
    ratios, notes = [], []
    for shape in SHAPES:
        token_s, copies_s = _decoded(shape, lab.seed)
        ratios.append(token_s / copies_s)
        notes.append(f"{shape} {token_s:.2f} s, {ratios[-1]:.2f}")
    return Measured(max(ratios), "; ".join(notes))


def _exchange_share(shape: str, ranks: int, seed: int) -> float:
    """Of the time of decoding steps of eight sequences a rank, in all-to-alls."""
    spec = preset(shape)
    layers, seqs = sorted(spec.moe), 8 * ranks
    trace = iid_trace(seqs, len(layers), spec.num_experts, k=spec.experts_per_token, seed=seed)
    job = Decoding(
        spec=spec,
        trace=replace(trace, layers=tuple(layers)),
        num_seqs=seqs,
        num_steps=1,
        context=survey.CONTEXT,
    )
    placement = ExpertPlacement.in_order(len(layers), spec.num_experts, ranks)
    costs = CostModel(parse_place(f"sim:h200x{ranks}"))
    found = simulate(job, ExpertDispatch(placement=placement, return_home=True), costs)
    return found.all_to_all_s / found.seconds


@claim(
    NAME,
    title="share of all-to-alls in a decoding step, more H200s over fewer, the smallest step of three shapes",
    paper="- (grows with ranks; our bar 1)",
    expect=1.0,
    within=0.0,
    bound="at least",
)
def exchange_grows(lab: Lab) -> Measured:
    steps, notes = [], []
    for shape, ranks in (
        ("mixtral-8x7b", (2, 4, 8)),
        ("qwen3-235b-a22b", (8, 16, 32)),
        ("deepseek-v3", (16, 32)),
    ):
        shares = [_exchange_share(shape, n, lab.seed) for n in ranks]
        steps += [b / a for a, b in pairwise(shares)]
        of_ranks = ", ".join(f"{share:.0%} of {n}" for n, share in zip(ranks, shares, strict=True))
        notes.append(f"{shape} {of_ranks}")
    return Measured(min(steps), "; ".join(notes))
