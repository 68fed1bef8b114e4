"""LLMCompiler: all calls planned at once as a graph, begun while the plan is still being written.

Paper:   An LLM Compiler for Parallel Function Calling (Kim et al., 2023), https://arxiv.org/abs/2312.04511
Idea:    one turn plans n calls that name each other's results; each begins when its line is read and what it
         needs is there; one turn joins, and may ask for another plan.
Shapes:  a plan of n calls in L layers takes 2 turns and the longest chain of calls, not n + 1 turns.
Cost:    a plan line for each call, about 20 tokens; the joiner reads every observation once.
Claims:  lightwork claims llm_compiler
Differs: what breaks the plan's rules is told to the joiner instead of raised. Calls begin at their own
         newline, not at the next line's, and nothing polls. Results go to later calls as values, never through text.

Source of the prompts' form: section 3 and appendix; the wording is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lightwork.agents.chat_model import ChatRequest, Message
from lightwork.agents.context import Context, Result
from lightwork.agents.graph import Task
from lightwork.agents.plan_run import PlanRun
from lightwork.agents.plan_text import Bad
from lightwork.agents.tool import Observation
from lightwork.errors import CapacityError

PLANNER = """Plan calls of the tools below that answer the question, as many at once as possible.
Write one call per line: ID. TOOL(ARGUMENTS). IDs begin with {first} and rise. Arguments are Python literals.
$ID stands for the result of an earlier call. A line "Thought: ..." may stand before a call.
Call nothing that is not listed, and nothing twice. End with a line join().

{tools}"""
JOINER = """Answer the question from the observations. Write a line "Thought: ..." and then one of
Action: Finish(ANSWER)
Action: Replan(WHAT IS MISSING)"""
FINAL = (
    'Answer the question from the observations. Write a line "Thought: ..." and then\nAction: Finish(ANSWER)'
)
Seen = dict[int, tuple[Task, Observation]]


@dataclass(frozen=True, slots=True)
class LlmCompiler:
    """max_replans: plans after the first. most: calls in one plan. trained: the model has learnt to plan: it
    is told the tools and the question and nothing else, and the last call's result is the answer.
    """

    max_replans: int = 1
    most: int = 128
    trained: bool = False

    async def run(self, context: Context, question: str) -> Result:
        seen: Seen = {}
        thought = ""
        try:
            for left in range(self.max_replans, -1, -1):
                seen, bad = await self._plan(context, question, seen, thought)
                if self.trained:
                    return _last(context, seen, bad)
                finish, thought = await self._join(context, question, seen, bad, final=left == 0)
                if finish:
                    return _result(context, thought, "", seen)
        except CapacityError as spent:
            return _result(context, "", str(spent), seen)
        return _result(context, "", f"no answer after {self.max_replans} more plans: {thought}", seen)

    async def _plan(
        self, context: Context, question: str, seen: Seen, thought: str
    ) -> tuple[Seen, list[Bad]]:
        """One plan, carried out: everything seen so far, and the lines that were no calls."""
        run = PlanRun(context.kernel, context.tools, most=self.most, before=seen)
        stream = context.stream(self._planner_request(context, question, seen, thought), "planner")
        try:
            async for piece in stream:
                context.says(piece)
                run.push(piece)
                if run.done:
                    break
            context.count(stream.cancel())
            return await run.end(), run.bad
        except BaseException:
            run.cancel()
            raise

    def _planner_request(self, context: Context, question: str, seen: Seen, thought: str) -> ChatRequest:
        tools = context.tools.tools.values()
        if self.trained:
            listed = "\n".join(["tools:", *(f"- {t.description} {t.name}" for t in tools)])
            return ChatRequest((Message("user", f"{listed}\nquestion: {question}"),))
        listed = "\n".join(f"- {t.name}({', '.join(t.names)}): {t.description}" for t in tools)
        asked = f"Question: {question}"
        if seen:
            asked += f"\n\nPrevious plan, which was not enough:\n{_told(seen.values())}\nThought: {thought}"
        system = PLANNER.format(first=max(seen, default=0) + 1, tools=listed)
        return ChatRequest((Message("system", system), Message("user", asked)))

    async def _join(
        self, context: Context, question: str, seen: Seen, bad: Iterable[Bad], *, final: bool
    ) -> tuple[bool, str]:
        """(True, the answer), or (False, why another plan is needed)."""
        told = _told(seen.values()) + "".join(f"\n{line.line}\n  refused: {line.why}" for line in bad)
        messages = (
            Message("system", FINAL if final else JOINER),
            Message("user", f"Question: {question}\n\nObservations:\n{told}"),
        )
        text = (await context.ask(ChatRequest(messages), "joiner")).text
        context.says(f"\n{text}\n")
        action = text.rpartition("Action:")[2].strip() if "Action:" in text else text.strip()
        for name in ("Replan", "Finish"):
            if action.startswith(f"{name}("):
                return name == "Finish", _inside(action[len(name) :])
        return True, action


def _inside(text: str) -> str:
    """What the outermost parentheses hold, however many are inside."""
    end = text.rfind(")")
    return text[1 : end if end > 0 else None].strip()


def _told(seen: Iterable[tuple[Task, Observation]]) -> str:
    return "\n".join(f"{task}\n  {observation.text}" for task, observation in seen)


def _last(context: Context, seen: Seen, bad: list[Bad]) -> Result:
    """The answer of a trained planner: the last call's result."""
    if not seen:
        return _result(context, "", f"the plan calls nothing: {bad[0].why if bad else 'it is empty'}", seen)
    observation = seen[max(seen)][1]
    return _result(context, "" if observation.error else observation.text, observation.error, seen)


def _result(context: Context, answer: str, why: str, seen: Mapping[int, tuple[Task, Observation]]) -> Result:
    observations = tuple(observation for _, observation in seen.values())
    return Result(answer, why, observations, usage=context.usage, turns=context.turns)
