"""Planners that run for real: a trained model over HTTP, and a teacher inside the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from lightwork.agents.chat_model import ChatModel, ChatRequest
from lightwork.agents.context import Context, Result
from lightwork.agents.engine_model import open_model
from lightwork.agents.http_model import HttpModel
from lightwork.agents.programs.llm_compiler import LlmCompiler
from lightwork.agents.tool import Tool, Toolbox
from lightwork.agents.world_tools import world_tools
from lightwork.agents.worlds import Episode
from lightwork.agents.worlds.plan_world import LINE, PlanWorld
from lightwork.agents.worlds.score import wilson
from lightwork.claims._trained_planner import planner_folder
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.plan import Plan

DRAFTS, AT_ONCE = "Ngram(k=4)", 16
QUESTIONS = {1: 400, 2: 400, 3: 400, 4: 400, 5: 100}
"""By depth; the deepest is deeper than any that the planner was trained on."""
COMPARED = 100
"""So many of each depth are asked with drafts as well."""
BRANCHES = {2: 21, 3: 31, 4: 31, 5: 30}
"""How many questions compare so many things, as in the publication."""
ASKED = "which is the tallest of "


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Counts over questions of one depth."""

    level: int
    questions: int
    exact: int
    answered: int

    def told(self, what: str) -> str:
        """A share, and the interval that holds it with 95 % confidence."""
        hits = self.exact if what == "exact" else self.answered
        low, high = wilson(hits, self.questions)
        return f"depth {self.level}: {hits} of {self.questions} {what} ({low:.1%} to {high:.1%})"


@dataclass(frozen=True, slots=True)
class Planned:
    """scores: without drafts, by depth. compared: questions asked with drafts as well. same: the share of
    those whose plans are the same."""

    scores: tuple[Score, ...]
    compared: int
    same: float


@cache
def planned(seed: int) -> Planned:
    """The trained planner behind a server, without and with drafts, each question with a catalogue of its
    own that it never saw."""
    rng, world, model = Random(f"planners {seed}"), PlanWorld(split="heldout"), str(planner_folder())
    episodes = {level: [world.sample(rng, level) for _ in range(num)] for level, num in QUESTIONS.items()}
    plain = {level: over_http(Plan(model=model), some) for level, some in episodes.items()}
    scores = [_score(level, some, plain[level]) for level, some in episodes.items()]
    drafted = over_http(
        Plan(model=model, use=(DRAFTS,)), [one for some in episodes.values() for one in some[:COMPARED]]
    )
    again = [result for some in plain.values() for result in some[:COMPARED]]
    same = [_plan(a) == _plan(b) for a, b in zip(again, drafted, strict=True)]
    return Planned(tuple(scores), len(same), sum(same) / len(same))


def over_http(plan: Plan, episodes: Sequence[Episode]) -> list[Result]:
    """Each question of its tools, a few at a time, through a server of this plan."""
    with BackgroundServer(load(plan)) as url:
        kernel = Kernel(WallClock())
        model = HttpModel(kernel, f"{url}/v1", plan.model)
        try:
            return [
                result
                for begin in range(0, len(episodes), AT_ONCE)
                for result in kernel.run(_ask_all(kernel, model, episodes[begin : begin + AT_ONCE]))
            ]
        finally:
            model.close()


async def _ask_all(kernel: Kernel, model: ChatModel, episodes: Sequence[Episode]) -> list[Result]:
    runs = []
    for episode in episodes:
        context = Context(kernel, {"": model}, Toolbox.of(kernel, world_tools(episode)), trained=True)
        runs.append(kernel.spawn(LlmCompiler().run(context, episode.question)))
    return await kernel.gather(*runs)


def _plan(result: Result) -> str:
    return result.messages[-1].content


def _score(level: int, episodes: Sequence[Episode], results: Sequence[Result]) -> Score:
    pairs = [*zip(episodes, results, strict=True)]
    return Score(
        level=level,
        questions=len(pairs),
        exact=sum(_plan(result) == episode.gold for episode, result in pairs),
        answered=sum(result.answer == truth(episode) for episode, result in pairs),
    )


def truth(episode: Episode) -> str:
    """The right answer: the calls of the right plan, one after another."""
    known: dict[str, object] = {}
    last: object = None
    for line in episode.gold.split("\n")[:-1]:
        said = LINE.fullmatch(line)
        assert said is not None
        last = known[f"${said[1]}"] = episode.call(said[4], [known.get(arg, arg) for arg in said[5].split()])
    return str(last)


# -- a teacher


def heights(seed: int) -> dict[str, int]:
    """Facts of our own: no two peaks are equally high."""
    rng = Random(f"heights {seed}")
    return {f"peak {i}": height for i, height in enumerate(rng.sample(range(1000, 9000), 60))}


def teach(request: ChatRequest, said: str) -> str:
    """A policy that plans a look-up for each peak and a comparison of what they give, and joins them."""
    told = request.messages[-1].content
    if "Observations:" in told:
        return f"Thought: the last call compares them.\nAction: Finish({told.rstrip().rpartition(' ')[2]})"
    peaks = told.partition(ASKED)[2].rstrip("?").split(", ")
    lines = [f'{i}. height("{peak}")' for i, peak in enumerate(peaks, 1)]
    ids = ", ".join(f"${i}" for i in range(1, len(peaks) + 1))
    return "\n".join([*lines, f"{len(peaks) + 1}. greatest([{ids}])", f"{len(peaks) + 2}. join()"])


def compared(seed: int) -> int:
    """How many of the 113 questions a teacher inside the engine answers rightly, in two turns each."""
    rng, kernel, facts = Random(f"compared {seed}"), Kernel(WallClock()), heights(seed)
    tools = [
        _tool("height", "peak", lambda peak: facts[peak]),
        _tool("greatest", "values", lambda values: max(values)),
    ]
    questions = [rng.sample(sorted(facts), num) for num, many in BRANCHES.items() for _ in range(many)]
    model = open_model(Plan(max_seqs=AT_ONCE), kernel, teach)

    async def ask(peaks: list[str]) -> bool:
        context = Context(kernel, {"": model}, Toolbox.of(kernel, tools))
        result = await LlmCompiler().run(context, f"{ASKED}{', '.join(peaks)}?")
        return result.turns == 2 and result.answer == str(max(facts[peak] for peak in peaks))

    try:
        return sum(kernel.run(kernel.gather(*[kernel.spawn(ask(peaks)) for peaks in questions])))
    finally:
        model.close()


def _tool(name: str, parameter: str, fn: object) -> Tool:
    assert callable(fn)
    return Tool(
        name=name,
        description=f"The {name}.",
        parameters={"type": "object", "properties": {parameter: {}}, "required": [parameter]},
        fn=fn,
        effect="pure",
        inline=True,
    )
