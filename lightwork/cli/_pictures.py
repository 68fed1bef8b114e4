"""What a technique does, drawn: it runs on a tiny load in simulation, beside what one would do without it.

Nothing here is drawn by hand: every letter is a span of a run, every mark a decision of the technique's own
code. Kinds that change numbers rather than when something happens have no picture; `WITHOUT` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lightwork.errors import LightworkError
from lightwork.runtime import timeline
from lightwork.techniques import Technique, parse

if TYPE_CHECKING:
    from lightwork.runtime.trace import Span, Trace
    from lightwork.serve.loads import Arrival

WIDTH = 64
MODEL, PLACE = "shape:llama-3-8b", "sim:a100"
BARS = " ▁▂▃▄▅▆▇█"
WITHOUT = {
    "adapters": "an adapter changes numbers, not when something happens",
    "composition": "it serves checkpoints of yours; lightwork claims sn40l and blockllm simulate it",
    "compression": "it changes numbers; its claim tells what they cost",
    "hop": "it needs blocks of several models; lightwork claims blockllm simulates it",
    "layout": "it changes which blocks lie side by side; its claim counts the copies",
    "precision": "it changes numbers; serve prints what they cost in perplexity",
    "predictor": "it needs routes of a trained mixture; its claim counts what it foresees",
    "skip": "it changes which experts compute; its claim counts them",
    "split": "it is a kernel's; benchmarks/ times it",
    "tuning": "it needs examples of yours; lightwork claims flexllm simulates it",
    "verifier": "a text that is verified is the same text",
}


USES = {
    "ActivationAware": "ActivationAware(window=16)",
    "Copy": "Copy(k=6)",
    "FastSwitch": "FastSwitch(every=8)",
    "Lognormal": "Lognormal(prompt_sigma=0.8, output_sigma=0.8)",
    "Ngram": "Ngram(k=6)",
    "StaticBatches": "StaticBatches(size=3)",
    "StaticHot": "StaticHot(hot=('a', 'b', 'c'))",
    "Zipf": "Zipf(models=('a', 'b', 'c', 'd'))",
}
"""Techniques whose defaults would show nothing on so little."""


def _use(name: str) -> str:
    return USES.get(name, f"{name}()")


class Picture(NamedTuple):
    """title: what ran, where. lines: of the drawing, no wider than 80 columns."""

    title: str
    lines: list[str]


def picture(technique: Technique) -> Picture | str:
    """The picture of a technique, or why there is none."""
    draw = DRAWN.get(technique.kind)
    if draw is None:
        return WITHOUT.get(technique.kind, f"nothing draws a {technique.kind} yet")
    try:
        return draw(technique.name)
    except LightworkError as error:
        return f"not by itself: {error.wrong}"


# -- what is served: schedulers, tiers, routers

PLAIN = {
    "PrefillFirst": "StaticBatches(size=3)",
    "StaticBatches": "PrefillFirst()",
    "Flover": "StaticBatches(size=3)",
    "Sarathi": "PrefillFirst()",
    "SplitFuse": "PrefillFirst()",
}
"""What a scheduler stands beside; the engine's default where none is named."""
SMALL_KV = 3 << 28
SCENES: dict[str, dict[str, Any]] = {
    "FastSwitch": {"use": ("HostMemory(gb=8)",), "kv_bytes": SMALL_KV},
    "Fair": {"max_seqs": 2},
    "Microbatches": {"on": "sim:a100x2", "pp": 2},
}
"""What a scheduler is for, where a plain engine would not show it."""
TRAINS = "it shares steps with training; lightwork claims flexllm simulates it"
TURNS = "it gives models turns; lightwork claims sn40l simulates it"


def _scheduler(name: str) -> Picture | str:
    if name in ("CoServe", "TimeSharing"):
        return TRAINS
    if name == "ByModel":
        return TURNS
    plain = PLAIN.get(name, "Sarathi()")
    scene = {"on": PLACE, **SCENES.get(name, {})}
    beside = scene.pop("use", ())
    mine = _use(name)
    asked = {"PrefixGroups": _documents, "Fair": _crowd}.get(name, _requests)()
    runs = {use: _serve((use, *beside), asked, **scene) for use in (mine, plain)}
    return _lives(runs, f"{len(asked)} requests to llama-3-8b on {scene['on']}, simulated")


def _queue_policy(name: str) -> Picture | str:
    if name == "Priority":
        return "no load says what is urgent; agents do, see lightwork.agents.aios"
    other = "RoundRobin" if name == "FirstComeFirstServed" else "FirstComeFirstServed"
    uses = [f"ContextSwitch(policy={one}())" for one in (name, other)]
    runs = {use: _serve((use,), _requests(), on=PLACE) for use in uses}
    return _lives(runs, f"requests to llama-3-8b on {PLACE}, one of which computes at once, simulated")


def _tier(name: str) -> Picture:
    switch, kv_bytes = _use("FastSwitch"), SMALL_KV
    runs = {
        f"{switch} {name}()": _serve((switch, f"{name}()"), _requests(), on=PLACE, kv_bytes=kv_bytes),
        switch: _serve((switch,), _requests(), on=PLACE, kv_bytes=kv_bytes),
    }
    return _lives(runs, f"requests to llama-3-8b on {PLACE} take turns in 0.8 GB of KV, simulated")


def _router(name: str) -> Picture:
    from lightwork.serve.loads import Arrival

    asked = [Arrival(0.12 * i, 1500, 40) for i in range(8)]
    runs = {f"{name}()": _serve((f"{name}()",), asked, on="sim:a100x2", tp=1)}
    if name == "Replicas":
        runs["one engine of both"] = _serve((), asked, on="sim:a100x2", tp=2)
    else:
        runs["Replicas()"] = _serve(("Replicas()",), asked, on="sim:a100x2", tp=1)
    spans = {use: timeline.phases(trace.spans) for use, trace in runs.items()}
    return Picture(f"{len(asked)} requests to llama-3-8b on sim:a100x2, simulated", _beside(spans))


def _requests() -> list[Arrival]:
    """Some that talk, one that brings a long text, and some behind it."""
    from lightwork.serve.loads import Arrival

    came = [(0.0, 300, 44), (0.0, 300, 30), (0.1, 4000, 12)]
    behind = [(0.15, 300, 24), (0.2, 2000, 10), (0.25, 300, 16)]
    return [Arrival(*one) for one in came + behind]


def _crowd() -> list[Arrival]:
    """Four requests of one tenant, and behind them two of another, with room for two at a time."""
    from lightwork.serve.loads import Arrival

    return [Arrival(0.01 * i, 300, 24 if i < 4 else 12, tenant="ab"[i >= 4]) for i in range(6)]


def _documents() -> list[Arrival]:
    """Questions about two texts, in turns."""
    from lightwork.serve.loads import Arrival

    return [Arrival(0.0, 50, 20, shared=i % 2, shared_len=2000) for i in range(6)]


def _serve(use: tuple[str, ...], asked: Sequence[Arrival], *, on: str, **settings: Any) -> Trace:
    from lightwork.serve.loads import Given
    from lightwork.serve.plan import Plan
    from lightwork.serve.simulate import simulate

    return simulate(Plan(model=MODEL, on=on, use=use, **{"tp": 1, **settings}), Given(asked)).trace


def _lives(runs: dict[str, Trace], title: str) -> Picture:
    """A lane for each request of each run: what it did or waited for, as `lightwork why` tells it."""
    from lightwork.plan.why import life
    from lightwork.serve.metrics import request_times

    spans = {
        use: [part for seq in request_times(trace.spans) for part in life(trace.spans, seq)]
        for use, trace in runs.items()
    }
    return Picture(title, _beside(spans))


def _beside(runs: dict[str, list[Span]]) -> list[str]:
    """The lanes of some runs over one axis, each run below its name."""
    lanes = {use: timeline.lanes(spans) for use, spans in runs.items()}
    shown = [lane for some in lanes.values() for lane in some]
    letter = timeline.letters(shown)
    end_s = max(span.end_s for lane in shown for span in lane.spans)
    label = max(len(lane.rank) for lane in shown) + 1
    lines = []
    for use, some in lanes.items():
        lines.append(use)
        lines += [lane.rank.ljust(label) + timeline.draw(lane, letter, 0.0, end_s, WIDTH) for lane in some]
    lines.append(" " * label + timeline.ruler(end_s, WIDTH))
    return [*lines, *_packed([f"{c} {kind}" for kind, c in letter.items()] + [". nothing"])]


def _packed(words: Sequence[str]) -> list[str]:
    """Words in lines that fit, none of them cut."""
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > WIDTH:
            lines.append("")
        lines[-1] += f"{word}  "
    return [line.rstrip() for line in lines]


# -- drafts


SAID = "many hands make light work , said the {0} . the {0} had many hands ; many hands make light work ."
TEXT, AGAIN = SAID.format("miller"), SAID.format("baker")


def _proposer(name: str) -> Picture | str:
    if name == "Forced":
        return "it guesses what a grammar leaves no choice about, and needs a request that has one"
    if name not in ("Copy", "Ngram"):
        return "its guesses are computed by a model; lightwork bench speculate counts which hold"
    lines = []
    for use in ((_use(name),), ()):
        steps = _written(use)
        lines.append(f"{use[0] if use else 'plain'}: {len(steps)} steps")
        lines += _packed([" ".join(step) + " |" for step in steps])
    return Picture("a text is said again with two words changed; | ends a step, simulated", lines)


def _written(use: tuple[str, ...]) -> list[list[str]]:
    """The words that each step of a simulated engine adds, if the model repeats a text with one change."""
    from lightwork.runtime.kernel import Kernel
    from lightwork.runtime.trace import Trace
    from lightwork.serve.cost import predicted
    from lightwork.serve.engine import Engine
    from lightwork.serve.plan import Plan, make_engine, make_kv
    from lightwork.serve.sequence import Request
    from lightwork.serve.simulate import run_load
    from lightwork.serve.simulated import open_simulated
    from lightwork.serve.simulated_runner import SimulatedRunner

    prompt, output = TEXT.split(), AGAIN.split()
    words = [*dict.fromkeys(prompt + output)]
    ids = [words.index(word) for word in prompt + output]
    priced, _ = open_simulated(Plan(model=MODEL, on=PLACE, tp=1), Kernel())
    assert isinstance(priced, Engine)
    assert isinstance(priced.runner, SimulatedRunner)
    cost, kernel = priced.runner.cost, Kernel(trace=Trace("simulated"))
    plan = Plan(model=MODEL, on=PLACE, use=use)
    runner = SimulatedRunner(cost, script=lambda seq, position: ids[position])
    kv = make_kv(plan, 64, 16, 0)
    engine = make_engine(plan, kernel, kv, runner, 512, len(words), predict=predicted(cost))
    run_load(engine, [0.0], [Request(prompt=tuple(ids[: len(prompt)]), max_tokens=len(output))])
    assert kernel.trace is not None
    steps, at = [], 0
    for span in kernel.trace.spans:
        if span.kind == "step" and span.args is not None:
            emitted = sum(chunk[4] for chunk in span.args["chunks"])
            steps.append(output[at : at + emitted])
            at += emitted
    return steps


# -- loads and lengths


def _load(name: str) -> Picture:
    import numpy as np

    use = _use(name)
    arrivals = parse(use).arrivals(np.random.default_rng(0))
    first = [arrival for arrival in arrivals if arrival.after is None]
    end_s = max(arrival.at_s for arrival in first)
    later = len(arrivals) - len(first)
    after = f"; {later} more follow an answer" if later else ""
    lines = []
    for who in sorted({arrival.tenant or arrival.model for arrival in first}):
        came = [arrival.at_s for arrival in first if who in (arrival.tenant, arrival.model)]
        counts = np.histogram(came, bins=WIDTH, range=(0.0, end_s or 1.0))[0]
        lines.append(f"{who:<2}{_bars(counts)}")
    lines.append("  " + timeline.ruler(end_s, WIDTH))
    return Picture(f"when {len(first)} requests of {use} come{after}", lines)


def _length(name: str) -> Picture:
    import numpy as np

    use = _use(name)
    drawn = parse(use).draw(np.random.default_rng(0), 1000)
    lines = []
    for what, lengths in zip(("prompt", "output"), zip(*drawn, strict=True), strict=True):
        most = float(np.percentile(lengths, 99))
        counts = np.histogram(np.minimum(lengths, most), bins=WIDTH, range=(0.0, most))[0]
        lines += [f"{what}  {_bars(counts)}", "        0" + f"{most:.0f} tokens".rjust(WIDTH - 1)]
    return Picture(f"1000 lengths of {use}, the longest hundredth at the right edge", lines)


def _bars(counts: Sequence[int] | Any) -> str:
    """A character for each count: as high as it is beside the largest, and visible if it is not 0."""
    most = max(max(counts), 1)
    return "".join(BARS[-(-int(count) * (len(BARS) - 1) // int(most))] for count in counts)


# -- sums over ranks, and what stays in memory


def _all_reduce(name: str) -> Picture:
    plain = "Ring" if name != "Ring" else "Star"
    runs = {f"{use}()": _summed(use) for use in (name, plain)}
    return Picture("4 ranks sum 1 MB over links of 1 Gbit/s, simulated", _beside(runs))


def _summed(use: str) -> list[Span]:
    from lightwork.cluster import CostModel, parse_place
    from lightwork.cluster.devices import Link
    from lightwork.runtime.effects import Meta
    from lightwork.runtime.kernel import Kernel
    from lightwork.runtime.simulated import SimWorld
    from lightwork.runtime.trace import Trace

    link = Link(name="1 Gbit/s", a="device", b="device", bytes_per_s=125e6, latency_s=1e-4)
    costs = CostModel(replace(parse_place("sim:h100x4"), inner=link))
    trace, way = Trace("simulated"), parse(use)
    ranks = SimWorld(Kernel(trace=trace), costs.price, costs.resources())
    for me in range(4):
        ranks.launch(me, way.sum(me, 4, Meta((1 << 18,))))
    ranks.run()
    return [*trace.spans]


def _residency(name: str) -> Picture:
    from lightwork.memory.residencies.lru import LRU

    policy = parse(_use(name))
    ordered = policy.ring is not None
    uses = _in_a_circle() if ordered else _by_popularity()
    if name == "Belady":
        policy = replace(policy, trace=tuple(uses))
    slots = policy.ring.slots if ordered else 3
    lines = ["used".ljust(16) + "".join(uses)]
    for one in (policy, *([] if name == "LRU" else [LRU()])):
        marks = _kept(one, uses, slots, ordered)
        lines.append(type(one).__name__.ljust(16) + marks + f" {marks.count('█')} there")
    of = "8 layers, in order, over and over" if ordered else "8 experts, some liked more than others"
    return Picture(f"room for {slots} of {of}: █ was there, · is copied", lines)


def _kept(policy: Any, uses: Sequence[str], slots: int, ordered: bool) -> str:
    """For each use, whether the item was there when it was needed."""
    from lightwork.memory.residents import Residents

    names = sorted(set(uses))
    residents = Residents(dict.fromkeys(names, 1), slots, policy, names if ordered else ())
    marks = ""
    for name in uses:
        marks += "█" if name in residents else "·"
        if ordered:  # what comes next is fetched ahead
            for copied, _ in residents.turn(name):
                residents.end(copied, arrived=True)
            continue
        residents.use(name)
        if name not in residents:
            residents.begin(name)
            residents.end(name, arrived=True)
    return marks


def _in_a_circle() -> list[str]:
    return list("abcdefgh" * 6)


def _by_popularity() -> list[str]:
    import numpy as np

    weights = 1.0 / np.arange(1, 9)
    drawn = np.random.default_rng(0).choice(8, 48, p=weights / weights.sum())
    return ["abcdefgh"[i] for i in drawn]


# -- programs of agents


def _program(name: str) -> Picture:
    runs = {f"{use}()": _answered(use) for use in (name, "React" if name != "React" else "ParallelCalls")}
    title = "4 searches of 0.8 s, then a calculation; a model of 50 tokens/s, simulated"
    return Picture(title, _beside(runs))


def _answered(use: str) -> list[Span]:
    """The turns of the model, and each call in a lane of its own."""
    from lightwork.agents.profile_model import Profile
    from lightwork.claims._errand_programs import Errand, run
    from lightwork.runtime.trace import Trace

    trace = Trace("simulated")
    run(parse(use), Errand(4, calculates=True), Profile(ttft_s=0.5, tokens_per_s=50), 0.8, trace)
    turns = [span._replace(rank="model") for span in trace.spans if span.kind == "turn"]
    calls = sorted((span for span in trace.spans if span.kind == "tool"), key=lambda span: span.start_s)
    return [*turns, *(call._replace(rank=f"{i}", kind=call.name) for i, call in enumerate(calls, 1))]


DRAWN: dict[str, Callable[[str], Picture | str]] = {
    "all_reduce": _all_reduce,
    "length": _length,
    "load": _load,
    "program": _program,
    "proposer": _proposer,
    "queue_policy": _queue_policy,
    "residency": _residency,
    "router": _router,
    "scheduler": _scheduler,
    "tier": _tier,
}
