"""What an agent program works with, how much of it it may use, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf

from lightwork.agents.chat_model import ChatModel, ChatRequest, ChatStream, Message, Reply, Usage
from lightwork.agents.tool import Observation, Toolbox
from lightwork.agents.worlds.plan_world import prompt
from lightwork.errors import CapacityError, SpecError
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span


@dataclass(slots=True, kw_only=True)
class Budget:
    """What a run may use. More is refused with CapacityError, which a program turns into an answer."""

    turns: int = 32
    calls: int = 256
    tokens: float = inf
    seconds: float = inf


@dataclass(slots=True)
class Result:
    """What a program came to. answer: "" if it gave up, and why says so. messages: its transcript."""

    answer: str
    why: str = ""
    observations: tuple[Observation, ...] = ()
    messages: tuple[Message, ...] = ()
    usage: Usage = field(default_factory=Usage)
    turns: int = 0


def _silent(text: str) -> None:
    """Shown to nobody."""


@dataclass(slots=True)
class Context:
    """models: by role; "" is whoever has none of its own. says: shown what models write, as they write it.
    trained: the models have learnt to plan in PlanWorld: `asked` is all that they are told, they write calls
    as lines of a plan, and the last one's result is the answer.
    """

    kernel: Kernel
    models: Mapping[str, ChatModel]
    tools: Toolbox
    budget: Budget = field(default_factory=Budget)
    says: Callable[[str], object] = _silent
    trained: bool = False
    usage: Usage = field(default_factory=Usage, init=False)
    turns: int = field(default=0, init=False)
    start_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.start_s = self.kernel.now()

    def asked(self, question: str) -> Message:
        """The question and the tools, as models read them that are trained."""
        listed = [(tool.description, tool.name) for tool in self.tools.tools.values()]
        return Message("user", prompt(listed, question))

    def stream(self, request: ChatRequest, role: str = "") -> ChatStream:
        """One turn of the model of this role, counted. Raises CapacityError if the budget has no more."""
        self.check()
        self.turns += 1
        stream, begin_s = self._model(role).stream(request), self.kernel.now()
        if (trace := self.kernel.trace) is not None:
            who = role or "model"
            stream.when_done(lambda: trace.add(Span("model", "turn", who, begin_s, self.kernel.now())))
        return stream

    async def ask(self, request: ChatRequest, role: str = "") -> Reply:
        """The whole reply of one turn."""
        reply = await self.stream(request, role).reply()
        self.count(reply)
        return reply

    def count(self, reply: Reply) -> None:
        """What a streamed reply used."""
        self.usage = self.usage + reply.usage

    def check(self) -> None:
        """Raises CapacityError when the budget is spent."""
        spent = {
            "turns": (self.turns, self.budget.turns),
            "calls": (self.tools.calls, self.budget.calls),
            "tokens": (self.usage.prompt + self.usage.completion, self.budget.tokens),
            "seconds": (self.kernel.now() - self.start_s, self.budget.seconds),
        }
        for name, (used, most) in spent.items():
            if used >= most:
                raise CapacityError(f"the run has used its {most:g} {name}", expected="an answer before that")

    def _model(self, role: str) -> ChatModel:
        model = self.models.get(role) or self.models.get("")
        if model is None:
            raise SpecError(f"no model has the role {role!r}", expected=", ".join(map(repr, self.models)))
        return model
