"""Agents that turn to a model and to their tools, with a system between them and the model or without.

Lengths and tools are drawn once per seed, so every way of serving them is given the same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from lightwork.agents.aios.system import AIOS, Agent
from lightwork.agents.chat_model import ChatModel, ChatRequest, ChatStream, Message
from lightwork.agents.context import Budget, Context, Result
from lightwork.agents.engine_model import open_model
from lightwork.agents.tool import Toolbox
from lightwork.errors import BusyError
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.queue_policies import QueuePolicy
from lightwork.runtime.queue_policies.first_come_first_served import FirstComeFirstServed
from lightwork.runtime.queue_policies.round_robin import RoundRobin
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.context_switch import ContextSwitch

Way = Literal["none", "fifo", "rr"]
LEAST_S, LONGEST_S = 1.0, 60.0
"""Waits of a client whose request was refused: at random up to a bound that doubles, as the cookbooks of APIs
have it with the package tenacity."""


@dataclass(frozen=True, slots=True)
class Work:
    """What each agent does, so many times: a reply of about `tokens`, then a tool of about `tool_s`."""

    agents: int
    turns: int
    tokens: float
    tool_s: float
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """total_s: until the last agent has ended. waits_s: of every call of the model."""

    total_s: float
    waits_s: Sequence[float]

    @property
    def mean_s(self) -> float:
        return float(np.mean(self.waits_s))

    @property
    def p90_s(self) -> float:
        return float(np.percentile(self.waits_s, 90))


class Errands:
    """A program: turns of the model, each followed by a tool."""

    def __init__(self, turns: Sequence[tuple[int, float]]) -> None:
        self._turns = turns

    async def run(self, context: Context, question: str) -> Result:
        for tokens, tool_s in self._turns:
            await context.ask(ChatRequest((Message("user", question),), max_tokens=tokens))
            await context.kernel.sleep(tool_s)
        return Result("done", usage=context.usage)


class OnePlace:
    """A model that refuses whoever comes while it writes: a server without a queue."""

    def __init__(self, kernel: Kernel, model: ChatModel) -> None:
        self.name = model.name
        self._kernel, self._model, self._busy = kernel, model, False

    def stream(self, request: ChatRequest) -> ChatStream:
        if self._busy:
            refused = ChatStream(self._kernel)
            refused.fail(BusyError("the model writes for somebody else"))
            return refused
        self._busy = True
        stream = self._model.stream(request)
        self._kernel.spawn(self._free_after(stream), name="one place")
        return stream

    async def _free_after(self, stream: ChatStream) -> None:
        await stream.reply()
        self._busy = False


class AsksAgain:
    """A client that waits and asks again when it is refused. waits_s: of each reply, until it was taken."""

    def __init__(self, kernel: Kernel, model: ChatModel) -> None:
        self.name = model.name
        self.waits_s: list[float] = []
        self._kernel, self._model = kernel, model

    def stream(self, request: ChatRequest) -> ChatStream:
        stream = ChatStream(self._kernel)
        self._kernel.spawn(self._ask(request, stream), name="a client")
        return stream

    async def _ask(self, request: ChatRequest, stream: ChatStream) -> None:
        kernel, bound_s, came_s = self._kernel, LEAST_S, self._kernel.now()
        while True:
            asked_s = kernel.now()
            try:
                reply = await self._model.stream(request).reply()
            except BusyError:
                await kernel.sleep(float(kernel.rng("clients").uniform(LEAST_S, bound_s)))
                bound_s = min(2 * bound_s, LONGEST_S)
                continue
            self.waits_s.append(asked_s - came_s)
            stream.end(reply)
            return


def _turns(work: Work) -> list[list[tuple[int, float]]]:
    """Of each agent: lengths with the spread of chats, times of tools that vary half as much."""
    rng = np.random.default_rng(work.seed)
    shape = work.agents, work.turns
    tokens = np.exp(rng.normal(np.log(work.tokens), 0.8, shape)).round().clip(1, 400).astype(int)
    tools = work.tool_s * np.exp(rng.normal(0.0, 0.4, shape))
    return [[*zip(t.tolist(), s.tolist(), strict=True)] for t, s in zip(tokens, tools, strict=True)]


def _says(request: ChatRequest, said: str) -> str:
    return "so " * 500  # max_tokens cuts it


@cache
def at_work(way: Way, work: Work, plan: Plan, quantum: int = 16) -> Served:
    """none: agents ask a model of one place again and again. fifo, rr: they are processes of AIOS over the
    engine, one sequence of which computes at once."""
    policy: QueuePolicy = RoundRobin(quantum=quantum) if way == "rr" else FirstComeFirstServed()
    plan = Plan(
        model=plan.model, on=plan.on, max_waiting=1 << 20, use=(ContextSwitch(policy=policy), *plan.use)
    )
    kernel = Kernel(seed=work.seed)
    model = open_model(plan, kernel, _says)
    programs = [Errands(turns) for turns in _turns(work)]
    budget = Budget(turns=work.turns + 1)
    if way == "none":
        client = AsksAgain(kernel, OnePlace(kernel, model))
        contexts = [Context(kernel, {"": client}, Toolbox(kernel, {}), budget) for _ in programs]
        runs = [kernel.spawn(p.run(c, "next?")) for p, c in zip(programs, contexts, strict=True)]
    else:
        system = AIOS(kernel, {"": model})
        runs = [system.run(p, "next?", Agent(f"agent {i}"), budget) for i, p in enumerate(programs)]

    async def main() -> None:
        await kernel.gather(*runs)

    kernel.run(main())
    waits_s = client.waits_s if way == "none" else [call.waiting_s for call in system.calls]
    return Served(kernel.now(), waits_s)
