"""Dta: a turn divides what is left into calls that need nothing of each other, and reads all their results.

Paper:   Divide-Then-Aggregate (Zhu et al., 2025), https://arxiv.org/abs/2501.12432
Idea:    a process, the model, thinks and names independent calls; a thread for each carries it out; the next
         turn waits for all of them and sees their results in the order of the calls, whoever was first.
Shapes:  n calls that need each other in L layers take L + 1 turns, the last of them Finish; one at a time
         they take n + 1.
Cost:    a turn lasts as long as its slowest call; the conversation is read L + 1 times, not n + 1.
Claims:  lightwork claims dta_llama
Differs: Finish beside other calls ends the run and they are not made. A turn without a call is told so, and
         the budget bounds how often. A model that has learnt turns of PlanWorld (`Context.trained`) writes
         calls as plan lines, and ends with join(): the last call's result is the answer.

Trained by `agents.layering`, which makes such turns of one call at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.agents.chat_model import ChatRequest, Message, Reply, ToolCall
from lightwork.agents.context import Context, Result
from lightwork.agents.graph import Task, fill
from lightwork.agents.plan_text import Bad, Join, PlanParser
from lightwork.agents.tool import Observation
from lightwork.agents.trajectories import FINISH
from lightwork.errors import CapacityError, LightworkError, UsageError

INSTRUCTIONS = """Answer the question with the tools. In each turn, think first, then make every call that
needs nothing of another call of the same turn. You are shown all results before your next turn.
When you know the answer, call Finish and nothing else."""
NO_CALL = "Nothing was called. Call tools, or Finish with the answer."
FINISH_SCHEMA = {
    "name": FINISH,
    "description": "Ends the task. Empty if the question cannot be answered.",
    "parameters": {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]},
}


@dataclass(frozen=True, slots=True)
class _Said:
    """What a turn comes to. calls: in its order; those that cannot be made are answered already. answer: None
    to go on. joined: the last call's result is the answer.
    """

    calls: tuple[ToolCall | Observation, ...] = ()
    answer: str | None = None
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Dta:
    """most: calls of a turn that are carried out; the others are told so. instructions: the system message,
    "" none; models that are trained are given none.
    """

    most: int = 16
    instructions: str = INSTRUCTIONS

    async def run(self, context: Context, question: str) -> Result:
        messages = self._begin(context, question)
        seen: list[Observation] = []
        answer: str | None = None
        why = ""
        try:
            while answer is None:
                said = self._read(context, await self._turn(context, messages), seen)
                answer = said.answer
                if answer is None:
                    found = await self._carry_out(context, said)
                    messages += [_told(context, one) for one in found]
                    if not found and not said.joined:
                        messages.append(Message("user", NO_CALL))
                    seen += found
                    answer = _last(seen) if said.joined else None
        except CapacityError as spent:
            why = str(spent)
        if answer == "":
            why = seen[-1].error if seen and seen[-1].error else "the model gave no answer"
        return Result(answer or "", why, tuple(seen), tuple(messages), context.usage, context.turns)

    def _begin(self, context: Context, question: str) -> list[Message]:
        if context.trained:
            return [context.asked(question)]
        begun = [Message("system", self.instructions)] if self.instructions else []
        return [*begun, Message("user", question)]

    async def _turn(self, context: Context, messages: list[Message]) -> Reply:
        schemas = () if context.trained else (*context.tools.schemas(), FINISH_SCHEMA)
        reply = await context.ask(ChatRequest(tuple(messages), tools=schemas))
        context.says(f"{reply.text.strip()}\n")
        messages.append(reply.message())
        return reply

    async def _carry_out(self, context: Context, said: _Said) -> list[Observation]:
        """A thread for each call; nothing goes on until all are back, in the order of the calls."""
        why = f"not made: a turn has at most {self.most} calls"
        calls = [
            Observation(call, error=why) if i >= self.most and isinstance(call, ToolCall) else call
            for i, call in enumerate(said.calls)
        ]
        threads = [context.tools.call(call) for call in calls if isinstance(call, ToolCall)]
        found = iter(await context.kernel.gather(*threads))
        return [next(found) if isinstance(call, ToolCall) else call for call in calls]

    def _read(self, context: Context, reply: Reply, seen: list[Observation]) -> _Said:
        if context.trained:
            return _read_lines(context, reply.text, seen)
        for call in reply.calls:
            if call.name == FINISH and not call.raw:
                return _Said(answer=str(call.arguments.get("answer", "")).strip())
        return _Said(reply.calls)


def _told(context: Context, one: Observation) -> Message:
    """A result as the model reads it; one that has learnt from plans finds it by its number."""
    text = f"{one.call.id}. {one.text}" if context.trained else one.text
    return Message("tool", text, call_id=one.call.id)


def _read_lines(context: Context, text: str, seen: list[Observation]) -> _Said:
    """A turn that is written as lines of a plan; results of earlier turns may be named by `$id`."""
    results = {int(one.call.id): one.value for one in seen if one.call.id.isdigit() and not one.error}
    first = max((int(one.call.id) for one in seen if one.call.id.isdigit()), default=0) + 1
    parser = PlanParser(first=first, known=frozenset(results))
    calls: list[ToolCall | Observation] = []
    joined = False
    for said in parser.push(text + "\n"):
        if isinstance(said, Join):
            joined = True
        elif isinstance(said, Bad):
            calls.append(Observation(ToolCall("", "", {}), error=f"{said.line}: {said.why}"))
        else:
            try:
                calls.append(_bound(context, said, results))
            except LightworkError as error:
                calls.append(Observation(ToolCall(str(said.id), said.tool, {}), error=str(error)))
    return _Said(tuple(calls), joined=joined)


def _bound(context: Context, task: Task, results: dict[int, object]) -> ToolCall:
    """A line as a call. Raises UsageError for what this turn cannot know, and for too many arguments."""
    late = [f"${dep}" for dep in task.deps if dep not in results]
    if late:
        raise UsageError(f"{', '.join(late)} is not known in this turn", expected="results of earlier turns")
    tool = context.tools.tools.get(task.tool)
    args = fill(task.args, results)
    named = {} if tool is None else tool.bind(args)
    return ToolCall(str(task.id), task.tool, {**named, **fill(task.named, results)})


def _last(seen: list[Observation]) -> str:
    return "" if not seen or seen[-1].error else seen[-1].text
