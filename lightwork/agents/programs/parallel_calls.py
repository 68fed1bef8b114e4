"""ParallelCalls: a model's own way of calling tools, as many in one turn as it likes.

Paper:   the tool calls of chat APIs (since 2023); the baseline of LLMCompiler (https://arxiv.org/abs/2312.04511)
Idea:    a turn ends with calls; all of them run at once; their answers are the next turn's input.
Shapes:  calls that need each other's results take a turn each layer: L layers, L + 1 turns.
Cost:    every turn reads the conversation again, which the prefix cache keeps.
Claims:  llmcompiler
Differs: a wrong call or a failing tool is an observation; a budget that is spent ends the run with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lightwork.agents.chat_model import ChatRequest, Message, Reply
from lightwork.agents.context import Context, Result
from lightwork.agents.tool import Observation
from lightwork.errors import CapacityError


@dataclass(frozen=True, slots=True)
class ParallelCalls:
    """most: calls of one turn that are carried out; the model is not told of the others. instructions: the
    system message, "" none.
    """

    most: int = 64
    instructions: str = ""

    async def run(self, context: Context, question: str) -> Result:
        messages = [Message("system", self.instructions)] if self.instructions else []
        messages.append(Message("user", question))
        seen: list[Observation] = []
        answer = why = ""
        try:
            while reply := await self._turn(context, messages):
                if not reply.calls:
                    answer = reply.text.strip()
                    break
                seen += await self._carry_out(context, messages, reply)
        except CapacityError as spent:
            why = str(spent)
        return Result(answer, why, tuple(seen), tuple(messages), context.usage, context.turns)

    async def _turn(self, context: Context, messages: list[Message]) -> Reply:
        reply = await context.ask(ChatRequest(tuple(messages), tools=context.tools.schemas()))
        reply = replace(reply, calls=reply.calls[: self.most])
        context.says(f"{reply.text.strip()}\n")
        messages.append(reply.message())
        return reply

    async def _carry_out(self, context: Context, messages: list[Message], reply: Reply) -> list[Observation]:
        """Answers in the order of the calls, whichever came first."""
        found: list[Observation] = await context.kernel.gather(*map(context.tools.call, reply.calls))
        messages += [Message("tool", seen.text, call_id=seen.call.id) for seen in found]
        return found
