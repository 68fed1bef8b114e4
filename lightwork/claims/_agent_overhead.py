"""What graphs and programs cost by themselves: work that does nothing, timed by the processor's clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightwork.agents.chat_model import ChatRequest, ChatStream, Reply, ToolCall
from lightwork.agents.context import Context, Result
from lightwork.agents.graph import Graph, Slot, Task
from lightwork.agents.programs.parallel_calls import ParallelCalls
from lightwork.agents.tool import Tool, Toolbox
from lightwork.runtime.clock import WallClock, cpu_s
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel

CALLS = 4
ANSWER = "It is 0, 1, 2 and 3 degrees."
REPEATS = 7


def graph_run(kind: str, num: int) -> Callable[[], int]:
    """Builds a graph of so many tasks and carries it out; every task adds one. kind: "fanout", "chain", or
    "waiting": a chain whose first result comes when all tasks are there."""
    kernel, chain, waiting = Kernel(), kind != "fanout", kind == "waiting"
    held: list[Future] = []

    def start(task: Task, args: tuple[int, ...], named: Mapping[str, Any]) -> Any:
        if waiting and task.id == 1:
            held.append(kernel.future("the first result"))
            return held[-1]
        return args[0] + 1

    def run() -> int:
        graph = Graph(kernel, start)
        for id in range(1, num + 1):
            graph.add(Task(id, "node", (Slot(id - 1),) if chain and id > 1 else (0,)))
        if waiting:
            held.pop().set(1)
            kernel.run()
        results = graph.seal().result()
        return int(results[num] if chain else sum(results.values()))

    return run


def small_run() -> Callable[[], str]:
    """A run of two turns and four calls on a wall clock, with a model that answers at once."""
    kernel = Kernel(WallClock())
    kinds = {"city": {"type": "string"}, "day": {"type": "integer"}}
    tool = Tool(
        name="weather",
        description="The temperature.",
        parameters={"type": "object", "properties": kinds, "required": [*kinds]},
        fn=lambda city, day: f"{day} degrees",
        inline=True,
    )
    calls = tuple(ToolCall(f"c{i}", tool.name, {"city": "Oslo", "day": i}) for i in range(CALLS))

    class AtOnce:
        name = "at once"

        def stream(self, request: ChatRequest) -> ChatStream:
            stream, told = ChatStream(kernel), request.messages[-1].role == "tool"
            stream.end(Reply(ANSWER) if told else Reply("", calls, "tool_calls"))
            return stream

    model, program = AtOnce(), ParallelCalls()

    def run() -> str:
        context = Context(kernel, {"": model}, Toolbox.of(kernel, [tool]))
        result: Result = kernel.run(program.run(context, "What is the weather?"))
        assert len(result.observations) == CALLS
        return result.answer

    return run


def least_us(run: Callable[[], object], num: int) -> float:
    """CPU microseconds of one of num runs, the least of some repeats: what others do here only adds."""
    taken = []
    for _ in range(REPEATS):
        begin_s = cpu_s()
        for _ in range(num):
            run()
        taken.append(1e6 * (cpu_s() - begin_s) / num)
    return min(taken)
