"""Two sets of techniques on the same requests, interleaved, with the ratio and its spread."""

from __future__ import annotations

from statistics import median

from lightwork.cli._output import show_json
from lightwork.errors import InvariantError
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.loads import Load, parse_load
from lightwork.serve.metrics import Summary, summarise
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.simulate import SyntheticRequests, run_load, simulate

FIGURES = {
    "output_tokens_per_s": "tokens/s",
    "ttft_p50_s": "ttft p50",
    "ttft_p99_s": "ttft p99",
    "tbt_p50_s": "itl p50",
    "tbt_p99_s": "itl p99",
    "tbt_max_s": "itl max",
}


def bench(a: str, b: str, *, model: str, on: str, load: str, rounds: int, seed: int, as_json: bool) -> None:
    """Print A over B for each figure: the median ratio of the rounds, and their range."""
    plans = [Plan(model=model, on=on, use=_techniques(text)) for text in (a, b)]
    for plan in plans:
        plan.techniques()
    # Techniques are lossless, precisions are not: between two of them texts may differ.
    exact = plans[0].techniques().get("precision") == plans[1].techniques().get("precision")
    offered = parse_load(load)
    runs: tuple[list[Summary], list[Summary]] = ([], [])
    for number in range(rounds):
        # Whoever goes first alternates, so that a drift of the machine does not favour one.
        texts: list[object] = [None, None]
        for i in (0, 1) if number % 2 == 0 else (1, 0):
            summary, texts[i] = _run(plans[i], offered, seed)
            runs[i].append(summary)
        if exact and texts[0] != texts[1]:
            raise InvariantError(f"{a} and {b} gave different texts", expected="equal texts")
    rows = {
        name: _ratio([getattr(s, name) for s in runs[0]], [getattr(s, name) for s in runs[1]])
        for name in FIGURES
    }
    if as_json:
        show_json({"a": a, "b": b, "simulated": on.startswith("sim:"), "rounds": rounds, "ratios": rows})
        return
    equal = "outputs equal" if exact else "outputs may differ"
    kind = "simulated" if on.startswith("sim:") else "measured"
    print(f"{a} over {b}   {model} on {on}   {load}   {kind}   n={rounds}   {equal}")
    for name, words in FIGURES.items():
        middle, low, high = rows[name]
        print(f"  {words:<9} {middle:6.2f}x  [{low:.2f}, {high:.2f}]")


def _techniques(text: str) -> tuple[str, ...]:
    return () if text == "plain" else tuple(part.strip() for part in text.split("+"))


def _run(plan: Plan, load: Load, seed: int) -> tuple[Summary, object]:
    """One run of a load: its figures, and what must not differ between A and B."""
    if plan.on.startswith("sim:"):
        run = simulate(plan, load, seed=seed)
        return run.summary, run.summary.num_finished
    kernel = Kernel(WallClock(), seed=seed, trace=Trace("real"))
    engine, model, _ = open_engine(plan, kernel)
    arrivals = load.arrivals(kernel.rng("load"))
    vocab_size, rng = model.spec.vocab_size, kernel.rng("prompts")
    requests = SyntheticRequests(arrivals, vocab_size, rng, model.variants)
    try:
        seqs = run_load(engine, arrivals, requests)
    finally:
        engine.close()
        model.close()
    assert kernel.trace is not None
    return summarise(kernel.trace, simulated=False), [seq.tokens for seq in seqs]


def _ratio(a: list[float], b: list[float]) -> tuple[float, float, float]:
    ratios = [x / y for x, y in zip(a, b, strict=True) if y > 0] or [float("nan")]
    return median(ratios), min(ratios), max(ratios)
