"""WebShop, simulated: a tree search by one call after another, and plans of LLMCompiler.

The tree search is Language Agent Tree Search (Zhou et al., 2023). How often it asks in an iteration, how long
what it reads and writes is, and what a page takes are means over the two questions of the log that its
authors published (github.com/andyz245/LanguageAgentTreeSearch, gpt-3.5-turbo), which its first iteration
answered. Of its questions it answers `SOLVED`, a figure recalled from the publication and not checked; the
others use up the `ITERATIONS` of its script.
Assumed: what it answers, it answers at once, as in the log; later iterations are like the first.

LLMCompiler's program is not published. Assumed: a first plan searches; a second one, after its page was seen,
opens all products of the page at once; the joiner buys one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightwork.agents.chat_model import ChatRequest, Message
from lightwork.agents.context import Budget, Context, Result
from lightwork.agents.policies import Policy
from lightwork.agents.profile_model import Profile
from lightwork.agents.programs import Program
from lightwork.claims._profiled import simulated_run, tool

ITERATIONS, SOLVED = 30, 0.38
STEPS = ((70, 10, 2), (261, 5, 5), (27, 5, 1), (310, 5, 5), (23, 5, 0))
"""Of an iteration: characters of the longest of the actions that one call proposes, pages that are opened to
try them, and what is judged."""
JUDGEMENT = "x" * 304
PAGE_S = 0.18
PRODUCTS = 10
"""Of a page of results."""
QUERY = "long clip-in hair extension natural looking"
ITEM, PRODUCT = "B09QQLDJ{:02}", "A hair extension, 18 inches, natural black, dark brown or blonde; $32.99."
THINKS = "These are what was asked for, and cheap enough; now I look at each of them."
BOUGHT = ITEM.format(0)


def says(request: ChatRequest, said: str) -> str:
    """What the tree search's model writes: as many characters as it is asked for."""
    return "x" * int(request.messages[-1].content)


def plans(request: ChatRequest, said: str) -> str:
    if "Previous plan" not in request.messages[-1].content:
        return f'1. search("{QUERY}")\n2. join()'
    lines = [f'{i + 2}. open("{ITEM.format(i)}")' for i in range(PRODUCTS)]
    return "\n".join([*lines, f"{PRODUCTS + 2}. join()"])


def joins(request: ChatRequest, said: str) -> str:
    seen = "open(" in request.messages[-1].content
    return f"Thought: {THINKS}\nAction: {f'Finish({BOUGHT})' if seen else 'Replan(their pages)'}"


@dataclass(frozen=True, slots=True)
class TreeSearch:
    """iterations: how many it takes; each descends from where it is to a product that is bought."""

    iterations: int

    async def run(self, context: Context, question: str) -> Result:
        for _ in range(self.iterations):
            for longest, pages, judged in STEPS:
                await context.ask(asking(longest))
                for _ in range(pages):
                    await context.kernel.sleep(PAGE_S)
                for _ in range(judged):
                    await context.ask(asking(len(JUDGEMENT)))
        return Result(BOUGHT, usage=context.usage, turns=context.turns)


def asking(characters: int) -> ChatRequest:
    return ChatRequest((Message("user", str(characters)),))


def bought(program: Program, profile: Profile) -> float:
    """The seconds of one question, in virtual time."""

    def search(query: str) -> str:
        return "\n".join(f"{ITEM.format(i)} {PRODUCT}" for i in range(PRODUCTS))

    def open(product: str) -> str:
        return PRODUCT

    pages = [tool(search, "The products for a query.", PAGE_S), tool(open, "A product's page.", PAGE_S)]
    said: Mapping[str, Policy] = {"": says, "planner": plans, "joiner": joins}
    budget = Budget(turns=1000)
    done = simulated_run(program, QUERY, profile, said, lambda kernel, models: pages, budget=budget)
    assert done.result.answer == BOUGHT
    return done.seconds


def searched(profile: Profile) -> float:
    """The mean seconds of the tree search."""
    solved, given_up = (bought(TreeSearch(num), profile) for num in (1, ITERATIONS))
    return SOLVED * solved + (1.0 - SOLVED) * given_up
