"""The first half minute: a real server, real clients, and the same requests on a machine that is not here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from lightwork.agents.worlds import Episode
from lightwork.agents.worlds.plan_world import PlanWorld
from lightwork.cli._output import show_json
from lightwork.runtime import timeline
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.perfetto import write_chrome_trace
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.http.main import BackgroundServer, Loaded, load
from lightwork.serve.metrics import Slo, Summary, request_times, summarise
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load
from lightwork.serve.simulated import open_simulated

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MODEL = "tiny:llama"
TWIN = "sim:a100x8"
NUM_REQUESTS = 32
SLO = Slo(ttft_s=1.0, tpot_s=0.1)
WIDTH = 72


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the clients got. tokens, seconds: of all requests together."""

    texts: list[str]
    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def demo(*, trace: str | None, seed: int, as_json: bool) -> None:
    """Serve, ask one by one and all at once, simulate, draw, and write one trace file with both worlds."""
    path = trace or "demo-trace.json"
    # Without a prefix cache, so that asking the same again is the same work again.
    loaded = load(Plan(model=MODEL, prefix_cache=False), keep_spans=None)
    size = f"{loaded.model.spec.num_layers} layers, {loaded.nbytes / 1e6:.1f} MB"
    _say(as_json, "load", f"{MODEL}  {size}     {sum(s for _, s in loaded.phases):.1f} s")
    episodes = _questions(seed)
    with BackgroundServer(loaded) as url:
        one_by_one, at_once, spans = asyncio.run(_ask_both_ways(url, loaded, episodes))
    real = Trace(f"real: {MODEL} on this CPU")
    for span in spans:
        real.add(span)
    twin = _simulate(spans)
    write_chrome_trace(path, [real, twin])
    measured = summarise(real, simulated=False, slo=SLO)
    predicted = summarise(twin, simulated=True, slo=SLO)
    right = sum(e.check(t).exact for e, t in zip(episodes, at_once.texts, strict=True))
    same = sum(a == b for a, b in zip(one_by_one.texts, at_once.texts, strict=True))
    if as_json:
        show_json(
            {
                "one_by_one_tokens_per_s": one_by_one.tokens_per_s,
                "at_once_tokens_per_s": at_once.tokens_per_s,
                "same_texts": same,
                "exact_plans": right,
                "requests": NUM_REQUESTS,
                "real": measured.to_dict(),
                "simulated": predicted.to_dict(),
                "trace": path,
            }
        )
        return
    speedup = at_once.tokens_per_s / one_by_one.tokens_per_s
    _say(False, "serve", f"{NUM_REQUESTS} requests  {_figures(measured)}")
    rates = f"one by one {one_by_one.tokens_per_s:.0f} tokens/s, at once {at_once.tokens_per_s:.0f}"
    _say(False, "", f"{rates}: {speedup:.1f}x, {same}/{NUM_REQUESTS} texts equal")
    _say(False, "", f"{right}/{NUM_REQUESTS} plans exact for tools never seen")
    promised = f"a first token within {SLO.ttft_s:g} s, then one each {timeline.in_units(SLO.tpot_s)}"
    _say(False, "", f"goodput: {promised}")
    _say(False, "sim", f"the same {NUM_REQUESTS} requests on {TWIN}, drawn beside the real run")
    _say(False, "", f"simulated: {_figures(predicted)}")
    _draw(real, twin)
    _say(False, "trace", f"{path}   (open it in ui.perfetto.dev, or: lightwork trace {path})")
    _say(False, "next", f"lightwork chat {MODEL} | lightwork techniques | lightwork claims sarathi")


def _questions(seed: int) -> list[Episode]:
    world, rng = PlanWorld(split="heldout"), Random(seed)
    return [world.sample(rng, 1 + i % 3) for i in range(NUM_REQUESTS)]


async def _ask_both_ways(
    url: str, loaded: Loaded, episodes: Sequence[Episode]
) -> tuple[Answers, Answers, list[Span]]:
    """Answers one by one and at once, and the spans of the second part on a clock that starts with it."""
    from openai import AsyncOpenAI

    clock = WallClock()
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        await _ask(client, episodes[0])
        start_s = clock.now()
        alone = [await _ask(client, e) for e in episodes]
        alone_s = clock.now() - start_s
        seen = len(loaded.trace.spans)
        begin_s = loaded.service.kernel.now()
        start_s = clock.now()
        together = await asyncio.gather(*(_ask(client, e) for e in episodes))
        together_s = clock.now() - start_s
    spans = [
        s._replace(start_s=s.start_s - begin_s, end_s=s.end_s - begin_s)
        for s in list(loaded.trace.spans)[seen:]
    ]
    return _answers(alone, alone_s), _answers(together, together_s), spans


async def _ask(client: AsyncOpenAI, episode: Episode) -> tuple[str, int]:
    reply = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": episode.prompt}], temperature=0.0, max_tokens=128
    )
    return reply.choices[0].message.content or "", reply.usage.completion_tokens if reply.usage else 0


def _answers(replies: Sequence[tuple[str, int]], seconds: float) -> Answers:
    return Answers(texts=[t for t, _ in replies], tokens=sum(n for _, n in replies), seconds=seconds)


def _simulate(spans: Sequence[Span]) -> Trace:
    """The same arrivals, prompt and output lengths on the twin."""
    times = sorted(request_times(spans).values(), key=lambda t: t.arrived_s)
    kernel = Kernel(trace=Trace(f"simulated: {MODEL} on {TWIN}"))
    engine, _ = open_simulated(Plan(model=MODEL, on=TWIN, prefix_cache=False), kernel)
    requests = [Request(prompt=(0,) * t.prompt_len, max_tokens=max(1, len(t.tokens_s))) for t in times]
    run_load(engine, [t.arrived_s for t in times], requests)
    assert kernel.trace is not None
    return kernel.trace


def _figures(run: Summary) -> str:
    """Medians, and how many requests were within the objective."""
    times = f"ttft {timeline.in_units(run.ttft_p50_s)}  itl {timeline.in_units(run.tbt_p50_s)}"
    return f"{times}  goodput {run.num_within_slo}/{run.num_requests}"


def _draw(*traces: Trace) -> None:
    """Both runs as lanes over one axis."""
    lanes = [(trace, lane) for trace in traces for lane in timeline.lanes(timeline.phases(trace.spans))]
    end_s = max(span.end_s for _, lane in lanes for span in lane.spans)
    letter = timeline.letters([lane for _, lane in lanes])
    for trace, lane in lanes:
        picture = timeline.draw(lane, letter, 0.0, end_s, WIDTH)
        print(f"          {picture}  {trace.label}")
    print(f"          {timeline.ruler(end_s, WIDTH)}")


def _say(quiet: bool, head: str, text: Any) -> None:
    if not quiet:
        print(f"  {head:<6}  {text}", flush=True)
