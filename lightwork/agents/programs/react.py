"""ReAct: one thought, one call, one observation, until there is an answer.

Paper:   ReAct: Synergizing Reasoning and Acting in Language Models (Yao et al., 2022),
         https://arxiv.org/abs/2210.03629
Idea:    the model reads each observation before it decides on the next call.
Shapes:  n calls take n + 1 turns, one after another.
Cost:    every turn reads the conversation again; nothing runs beside anything else.
Claims:  llmcompiler
Differs: calls are the chat API's, not lines of text.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.agents.context import Context, Result
from lightwork.agents.programs.parallel_calls import ParallelCalls


@dataclass(frozen=True, slots=True)
class React:
    """instructions: the system message, "" none."""

    instructions: str = "Think, then call one tool. When you know the answer, write it."

    async def run(self, context: Context, question: str) -> Result:
        return await ParallelCalls(most=1, instructions=self.instructions).run(context, question)
