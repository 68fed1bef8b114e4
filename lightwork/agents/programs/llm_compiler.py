"""LLMCompiler: all calls planned at once as a graph, begun while the plan is still being written.

Paper:   An LLM Compiler for Parallel Function Calling (Kim et al., 2023), https://arxiv.org/abs/2312.04511
Idea:    one turn plans n calls that name each other's results; each begins when its line is read and what it
         needs is there; one turn joins, and may ask for another plan.
Shapes:  a plan of n calls in L layers takes 2 turns and the longest chain of calls, not n + 1 turns.
Cost:    a plan line for each call, about 20 tokens; the joiner reads every observation once.
Claims:  llmcompiler
Differs: what breaks the plan's rules is told to the joiner instead of raised. Calls begin at their own
         newline, not at the next line's, and nothing polls. Results go to later calls as values. A model that
         has learnt PlanWorld (`Context.trained`) plans once, and nothing is joined.

Source of the prompts' form: section 3 and appendix; the wording is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lightwork.agents.chat_model import ChatRequest, Message, Reply
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


@dataclass(frozen=True, slots=True)
class LlmCompiler:
    """max_replans: plans after the first. most, plan_tokens: calls and tokens of one plan."""

    max_replans: int = 1
    most: int = 128
    plan_tokens: int = 1024

    async def run(self, context: Context, question: str) -> Result:
        run = _Run(self, context, question)
        try:
            for left in range(self.max_replans, -1, -1):
                await run.plan()
                if context.trained:
                    return run.last()
                answer = await run.join(final=left == 0)
                if answer is not None:
                    return run.result(answer)
        except CapacityError as spent:
            return run.result("", str(spent))
        return run.result("", f"no answer after {self.max_replans} more plans: {run.thought}")


@dataclass(slots=True)
class _Run:
    """One question. seen: calls and observations of all plans. bad: lines of the last that were no calls.
    thought: why another plan is needed. messages: what was asked and said.
    """

    program: LlmCompiler
    context: Context
    question: str
    seen: dict[int, tuple[Task, Observation]] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    thought: str = ""
    messages: list[Message] = field(default_factory=list)

    async def plan(self) -> None:
        """One plan, carried out while it is written."""
        context = self.context
        run = PlanRun(context.kernel, context.tools, most=self.program.most, before=self.seen)
        stream = context.stream(self._planner_request(), "planner")
        try:
            async for piece in stream:
                context.says(piece)
                run.push(piece)
                if run.done:
                    break
            reply = stream.cancel()
            self._said(reply)
            self.seen, self.bad = await run.end(), run.bad
        except BaseException:
            run.cancel()
            raise

    async def join(self, *, final: bool) -> str | None:
        """The answer, or None: another plan is needed."""
        told = self._told() + "".join(f"\n{line.line}\n  refused: {line.why}" for line in self.bad)
        user = Message("user", f"Question: {self.question}\n\nObservations:\n{told}")
        messages = self._ask(Message("system", FINAL if final else JOINER), user)
        reply = await self.context.stream(ChatRequest(messages), "joiner").reply()
        self.context.says(f"\n{reply.text}\n")
        self._said(reply)
        action = reply.text.rpartition("Action:")[2].strip()
        if action.startswith("Replan("):
            self.thought = _inside(action)
            return None
        return _inside(action) if action.startswith("Finish(") else action

    def last(self) -> Result:
        """The answer of a trained planner: the last call's result."""
        if not self.seen:
            return self.result(
                "", f"the plan calls nothing: {self.bad[0].why if self.bad else 'it is empty'}"
            )
        observation = self.seen[max(self.seen)][1]
        return self.result("" if observation.error else observation.text, observation.error)

    def result(self, answer: str, why: str = "") -> Result:
        observations = tuple(observation for _, observation in self.seen.values())
        context = self.context
        return Result(answer, why, observations, tuple(self.messages), context.usage, context.turns)

    def _planner_request(self) -> ChatRequest:
        return ChatRequest(self._planner_messages(), max_tokens=self.program.plan_tokens)

    def _planner_messages(self) -> tuple[Message, ...]:
        if self.context.trained:
            return self._ask(self.context.asked(self.question))
        tools = self.context.tools.tools.values()
        listed = "\n".join(f"- {t.name}({', '.join(t.names)}): {t.description}" for t in tools)
        system = PLANNER.format(first=max(self.seen, default=0) + 1, tools=listed)
        asked = f"Question: {self.question}"
        if self.seen:
            asked += f"\n\nPrevious plan, which was not enough:\n{self._told()}\nThought: {self.thought}"
        return self._ask(Message("system", system), Message("user", asked))

    def _told(self) -> str:
        return "\n".join(f"{task}\n  {observation.text}" for task, observation in self.seen.values())

    def _ask(self, *messages: Message) -> tuple[Message, ...]:
        self.messages += messages
        return messages

    def _said(self, reply: Reply) -> None:
        self.context.count(reply)
        self.messages.append(reply.message())


def _inside(action: str) -> str:
    """What the outermost parentheses hold, however many are inside."""
    text = action.partition("(")[2]
    return text.rpartition(")")[0].strip() if ")" in text else text.strip()
