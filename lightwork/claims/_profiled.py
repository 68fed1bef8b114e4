"""A program of agents in virtual time: each of its models is a latency and a price."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightwork.agents.chat_model import ChatModel
from lightwork.agents.context import Budget, Context, Result
from lightwork.agents.policies import Policy
from lightwork.agents.profile_model import Profile, ProfileModel
from lightwork.agents.programs import Program
from lightwork.agents.tool import Tool, Toolbox
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace

KINDS = {"str": {"type": "string"}, "int": {"type": "integer"}}
Models = Mapping[str, ProfileModel]
"""By role."""


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """models: what each came to cost, and how often it was asked."""

    result: Result
    seconds: float
    models: Models


def simulated_run(
    program: Program,
    question: str,
    profile: Profile,
    policies: Mapping[str, Policy],
    tools: Callable[[Kernel, Models], Sequence[Tool]],
    *,
    budget: Budget | None = None,
    trace: Trace | None = None,
) -> SimulatedRun:
    """One run. policies: what is said, by role. trace: gets its turns and calls."""
    kernel = Kernel(trace=trace)
    models = {role: ProfileModel(kernel, profile, said) for role, said in policies.items()}
    asked: Mapping[str, ChatModel] = models
    toolbox = Toolbox.of(kernel, tools(kernel, models))
    result = kernel.run(program.run(Context(kernel, asked, toolbox, budget or Budget()), question))
    return SimulatedRun(result, kernel.now(), models)


def tool(fn: Callable[..., object], description: str = "", cost_s: float = 0.0) -> Tool:
    """A function whose arguments are texts, numbers or anything. cost_s: what a call takes."""
    names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    properties = {name: KINDS.get(fn.__annotations__.get(name, ""), {}) for name in names}
    parameters = {"type": "object", "properties": properties, "required": [*names]}
    return Tool(name=fn.__name__, description=description, parameters=parameters, fn=fn, cost_s=cost_s)
