"""BlockLLM: fine-tunes as chains of shared blocks, against one model for each.

Real: eight fine-tunes of one base (three adapters, three whose last layer was tuned, two tuned as a whole, by
short training). What blocks and probes do is measured on the built-in model, since probabilities of random
weights mean nothing; what batching does, on larger random ones (`_mixed_traffic`). Simulated: see
`_block_fleet`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, median

import numpy as np

from lightwork import models
from lightwork.claims import Lab, Measured, claim
from lightwork.claims._block_fleet import as_the_oracle, served
from lightwork.claims._mixed_traffic import mixed_traffic
from lightwork.claims._random_llama import written_once
from lightwork.claims._variants import EIGHT, eight, lessons, randomised, tune, widened
from lightwork.kernels.rows import Rows
from lightwork.models.chains import share
from lightwork.models.equivalence import THRESHOLD, Probes
from lightwork.models.held_out import read_held_out
from lightwork.models.model import Model
from lightwork.models.peft import read_adapter
from lightwork.models.speculation import Speculation, pruned
from lightwork.models.stitching import stitch
from lightwork.models.zoo import Zoo, gather

BASE = models.resolve("tiny:llama")
WIDE = 112
"""Numbers of a row where the base has 96."""


def _folder() -> Path:
    return written_once("fine-tunes-tiny", lambda part: eight(BASE, part, lessons))


@cache
def _zoo() -> Zoo:
    return gather(BASE, {name: _folder() / name for name in EIGHT})[0]


@claim(
    "blockllm",
    title="bytes of the blocks of eight fine-tunes, over those of eight models",
    paper="- (our bar 0.45)",
    expect=0.45,
    within=0.0,
    bound="at most",
    mode="real",
)
def bytes_of_the_zoo(lab: Lab) -> Measured:
    zoo = _zoo()
    apart = sum(zoo.blocks[i].nbytes for name in EIGHT for i in zoo.chain(name))
    return Measured(zoo.nbytes / apart, f"{len(zoo.blocks)} blocks, exact sharing only")


@claim(
    "blockllm",
    title="fine-tunes whose chain gives the bits of their own model's logits",
    paper="- (all eight)",
    expect=8.0,
    within=0.0,
    bound="at least",
    mode="real",
    unit="",
)
def chains_are_exact(lab: Lab) -> Measured:
    folder, together = _folder(), models.load("tiny:llama")
    share(together, *gather(BASE, {name: folder / name for name in EIGHT}))
    tokens = read_held_out(BASE)[0].tokens
    exact = 0
    for name in EIGHT:
        adapted, version = name.startswith("adapter"), ""
        own = models.load("tiny:llama" if adapted else str(folder / name))
        if adapted:
            version = own.adapters.put(read_adapter(folder / name, own.spec))
        exact += np.array_equal(_logits(own, tokens, version), _logits(together, tokens, name))
    return Measured(exact, f"of 8, {len(tokens)} tokens each")


def _logits(model: Model, tokens: np.ndarray, name: str) -> np.ndarray:
    rows = Rows.of_text(tokens, 16)
    rows.models = [name]
    return model.logits(rows, model.new_kv(-(-len(tokens) // 16), 16))


@claim(
    "blockllm",
    title="least similarity of a lightly tuned block in its base's place, and the reverse",
    paper="above its threshold (0.98 here)",
    expect=THRESHOLD,
    within=0.0,
    bound="at least",
    mode="real",
    unit="",
)
def lightly_tuned_blocks_are_equivalent(lab: Lab) -> Measured:
    edges = _probes(_zoo()).relate(0.0)
    agreement = sorted(edge.agreement for edge in edges)
    note = f"{len(edges)} pairs; greedy tokens agree {agreement[0]:.0%} to {agreement[-1]:.0%}"
    return Measured(min(edge.similarity for edge in edges), f"{note}, mean {fmean(agreement):.1%}")


def _probes(zoo: Zoo) -> Probes:
    texts = [text.tokens[:64] for text in read_held_out(BASE)[:4]]
    return Probes(models.load("tiny:llama"), zoo, texts)


@cache
def _random_blocks() -> list[float]:
    """Similarity of the built-in model with one block of random weights of the same spread, by place; at the
    end that of all random."""
    with tempfile.TemporaryDirectory() as place:
        randomised(BASE, Path(place) / "random", seed=0)
        zoo, chains = gather(BASE, {"random": Path(place) / "random"})
    chain, other = chains[""], chains["random"]
    swaps = [[*chain[:i], other[i], *chain[i + 1 :]] for i in range(len(chain)) if chain[i] != other[i]]
    return [_probes(zoo).likeness(chain, each)[0] for each in (*swaps, other)]


@claim(
    "blockllm",
    title="similarity of a model with random weights in every block",
    paper="- (our bar below 0.5)",
    expect=0.5,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def random_weights(lab: Lab) -> float:
    return _random_blocks()[-1]


@claim(
    "blockllm",
    title="greatest similarity of a model with random weights in one block",
    paper="- (our bar below 0.5)",
    expect=0.5,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def one_random_block(lab: Lab) -> Measured:
    places = _random_blocks()[:-1]
    below, admitted = (sum(value < bar for value in places) for bar in (0.5, THRESHOLD))
    note = f"{below} of {len(places)} below 0.5, {len(places) - admitted} admitted: what one block adds to"
    return Measured(max(places), f"{note} the residual stream is little, and its neighbours go on without it")


@claim(
    "blockllm",
    title="similarity of a fine-tune with wider rows, its first layers replaced by the base's and a stitch",
    paper="above its threshold (0.98 here)",
    expect=THRESHOLD,
    within=0.0,
    bound="at least",
    mode="real",
    unit="",
)
def stitched_chains(lab: Lab) -> Measured:
    """The worst of all places; asked on texts that the stitch was not trained on."""
    folder = written_once("fine-tunes-wide", _write_wide)
    zoo, chains = gather(BASE, {"tuned": folder / "tuned"})
    trained = [text.tokens[:128] for text in read_held_out(BASE)[4:12]]
    probes, asked = Probes(models.load("tiny:llama"), zoo, trained), _probes(zoo)
    layers = range(1, models.read_shape("tiny:llama").num_layers)
    found = [asked.likeness(chains["tuned"], stitch(probes, "", "tuned", layer)) for layer in layers]
    agreement = min(same for _, same in found)
    return Measured(
        min(near for near, _ in found), f"{len(found)} places, greedy tokens agree {agreement:.0%}"
    )


def _write_wide(top: Path) -> None:
    widened(BASE, top / "wide", WIDE)
    tune(top / "wide", top / "tuned", lessons(0), last_only=False)


@claim(
    "blockllm",
    title="texts that speculation over layers leaves as they are, with tolerance 0",
    paper="- (all)",
    expect=1.0,
    within=0.0,
    bound="at least",
    mode="real",
    unit="",
)
def speculation_is_exact(lab: Lab) -> Measured:
    """Three of nine layers are guessed with nine tenths of their MLPs' neurons, a text being one step."""
    texts = [text.tokens[:128] for text in read_held_out(BASE)[:8]]
    own = [_logits(models.load("tiny:llama"), tokens, "") for tokens in texts]
    exact, _, _ = _speculated(texts, own, 0.0)
    _, same, made = _speculated(texts, own, 0.1)
    note = f"with tolerance 0.1 {made.hits} hits, {made.misses} misses, {same:.0%} of greedy tokens the same"
    return Measured(exact / len(texts), note)


def _speculated(
    texts: Sequence[np.ndarray], own: Sequence[np.ndarray], tolerance: float
) -> tuple[int, float, Speculation]:
    """Texts whose logits have the same bits, the share of equal greedy tokens, and what counted."""
    model = models.load("tiny:llama")
    surrogates = [pruned(layer, 0.9) for layer in model.weights.layers[3:6]]
    made = Speculation(model, surrogates, first=3, tolerance=tolerance)
    model.hidden = made.hidden
    found = [_logits(model, tokens, "") for tokens in texts]
    pairs = [*zip(found, own, strict=True)]
    same = fmean(float((a.argmax(-1) == b.argmax(-1)).mean()) for a, b in pairs)
    return sum(np.array_equal(a, b) for a, b in pairs), same, made


@claim(
    "blockllm",
    title="eight fine-tunes in shared blocks: rows of a shared block's call over those of one model's",
    paper="- (our bar 3)",
    expect=3.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def batches_of_shared_blocks(lab: Lab) -> float:
    return mixed_traffic().batch


@claim(
    "blockllm",
    title="the same load one model after the other, each read into the same memory: time over shared blocks",
    paper="- (our bar 1.5)",
    expect=1.5,
    within=0.0,
    bound="at least",
    mode="real",
)
def throughput_over_swapping(lab: Lab) -> Measured:
    traffic = mixed_traffic()
    low, high = min(traffic.swapped), max(traffic.swapped)
    note = f"{low:.1f} to {high:.1f}x; {median(traffic.resident):.1f}x without the time to read models"
    return Measured(median(traffic.swapped), note)


@claim(
    "blockllm",
    title="the same by the compiled step, models resident and not read: time over shared blocks with torch",
    paper="- (our bar 1)",
    expect=1.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def throughput_over_compiled(lab: Lab) -> Measured:
    """The compiled step does not know chains: what a user of a CPU gives up for one copy of the weights."""
    compiled = mixed_traffic().compiled
    return Measured(median(compiled), f"{min(compiled):.2f} to {max(compiled):.2f}x")


@claim(
    "blockllm",
    title="95th percentile of latency, 28 applications on 12 A100s: shared blocks over a model for each",
    paper="33.5 % lower; our bounds 20 to 45 %",
    expect=0.665,
    within=0.2,
)
def tail_latency(lab: Lab) -> Measured:
    ours, shared, theirs = (served(make, False, lab.seed) for make in ("blocks", "shared", "apart"))
    note = f"{ours.p95_s:.1f} against {theirs.p95_s:.1f} s; sharing parameters alone {shared.p95_s:.1f} s"
    return Measured(ours.p95_s / theirs.p95_s, note)


@claim(
    "blockllm",
    title="what a device does in a second at work, on the same load",
    paper="GPU utilisation 20.1 % higher; our bounds 10 to 30 %",
    expect=1.2,
    within=0.084,
)
def utilisation(lab: Lab) -> Measured:
    """The requests are the same, so the ratio is that of the seconds; of all time, less of it is at work."""
    ours, theirs = (served(make, False, lab.seed) for make in ("blocks", "apart"))
    note = f"devices are at work {ours.share:.0%} of the time instead of {theirs.share:.0%}"
    return Measured(theirs.busy_s / ours.busy_s, note)


@claim(
    "blockllm",
    title="the first ratio when all applications are one model",
    paper="- (the gain vanishes)",
    expect=1.0,
    within=0.1,
)
def nothing_to_share(lab: Lab) -> float:
    ours, theirs = (served(make, True, lab.seed) for make in ("blocks", "apart"))
    return ours.p95_s / theirs.p95_s


@claim(
    "blockllm",
    title="hops whose cheapest of waiting, copying and computing again is foreseen, by trying all",
    paper="- (our bar 0.95)",
    expect=0.95,
    within=0.0,
    bound="at least",
    unit="",
)
def cheapest_way(lab: Lab) -> Measured:
    """Of the rule alone: with its patience, requests nearly always stay."""
    right, tried = as_the_oracle(lab.seed)
    return Measured(right / tried, f"{right} of {tried}")
