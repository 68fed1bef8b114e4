"""The work of light_programs.py, in a process of its own: `python run_programs.py PEER`.

Imports PEER's packages only. Reads lines {"part", "shape", "runs"} and answers each with {"us"}: CPU
microseconds, of a node where the part is "graph", of a whole run where it is "runs". Every result is checked.
"""

from __future__ import annotations

import asyncio
import json
import operator
import sys
from collections.abc import Callable, Iterator
from time import process_time
from typing import Annotated, Any

CALLS, CITY = 4, "Oslo"
ANSWER = "It is 0, 1, 2 and 3 degrees."
Run = Callable[[], object]


def size(shape: str) -> tuple[str, int]:
    """ "fanout 100" or "chain 20"."""
    kind, _, num = shape.partition(" ")
    return kind, int(num)


def lightwork_graph(shape: str) -> Run:
    """Builds the graph anew each time, for a planner does."""
    from lightwork.claims._agent_overhead import graph_run

    return graph_run(*size(shape))


def langgraph_graph(shape: str) -> Run:
    """Compiles the graph once."""
    from typing import TypedDict

    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        total: Annotated[int, operator.add]

    kind, num = size(shape)
    graph = StateGraph(State)
    names = [f"n{i}" for i in range(num)]
    for name in names:
        graph.add_node(name, lambda state: {"total": 1})
    ways = zip([START, *names], [*names, END], strict=True) if kind == "chain" else []
    for a, b in [*ways, *(w for n in names if kind == "fanout" for w in ((START, n), (n, END)))]:
        graph.add_edge(a, b)
    whole = graph.compile()
    return lambda: whole.invoke({"total": 0}, {"recursion_limit": 10_000})["total"]


def lightwork_run() -> Run:
    from lightwork.claims._agent_overhead import small_run

    return small_run()


def openai_agents_run() -> Run:
    from agents import Agent, Model, ModelResponse, Runner, Usage, function_tool, set_tracing_disabled
    from openai.types.responses import (
        ResponseFunctionToolCall,
        ResponseOutputMessage,
        ResponseOutputText,
    )

    set_tracing_disabled(True)

    @function_tool
    async def weather(city: str, day: int) -> str:
        """The temperature."""
        return f"{day} degrees"

    class Fake(Model):
        async def get_response(self, *rest: Any, **named: Any) -> Any:
            seen = [
                i for i in named["input"] if isinstance(i, dict) and i.get("type") == "function_call_output"
            ]
            if seen:
                assert len(seen) == CALLS
                text = ResponseOutputText(text=ANSWER, type="output_text", annotations=[])
                said: list[Any] = [
                    ResponseOutputMessage(
                        id="m", type="message", role="assistant", content=[text], status="completed"
                    )
                ]
            else:
                said = [
                    ResponseFunctionToolCall(
                        call_id=f"c{i}",
                        type="function_call",
                        name="weather",
                        arguments=json.dumps({"city": CITY, "day": i}),
                    )
                    for i in range(CALLS)
                ]
            return ModelResponse(output=said, usage=Usage(), response_id=None)

        def stream_response(self, *rest: Any, **named: Any) -> Any:
            raise NotImplementedError("nobody streams here")

    agent = Agent(name="agent", model=Fake(), tools=[weather])
    loop = asyncio.new_event_loop()
    return lambda: loop.run_until_complete(Runner.run(agent, "What is the weather?")).final_output


def pydantic_ai_run() -> Run:
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel

    def fake(messages: Any, info: Any) -> Any:
        seen = [part for part in messages[-1].parts if part.part_kind == "tool-return"]
        if seen:
            assert len(seen) == CALLS
            return ModelResponse(parts=[TextPart(ANSWER)])
        calls = [{"city": CITY, "day": i} for i in range(CALLS)]
        return ModelResponse(parts=[ToolCallPart("weather", args, f"c{i}") for i, args in enumerate(calls)])

    async def weather(city: str, day: int) -> str:
        """The temperature."""
        return f"{day} degrees"

    agent = Agent(FunctionModel(fake), tools=[weather])
    loop = asyncio.new_event_loop()
    return lambda: loop.run_until_complete(agent.run("What is the weather?")).output


GRAPHS = {"lightwork": lightwork_graph, "langgraph": langgraph_graph}
RUNS = {
    "lightwork": lightwork_run,
    "openai-agents": openai_agents_run,
    "pydantic-ai": pydantic_ai_run,
}


def answers(peer: str, lines: Iterator[str]) -> Iterator[float]:
    """CPU microseconds, for each line."""
    made: dict[str, Run] = {}
    for line in lines:
        asked = json.loads(line)
        key, shape = f"{asked['part']} {asked['shape']}", asked["shape"]
        if key not in made:
            made[key] = GRAPHS[peer](shape) if asked["part"] == "graph" else RUNS[peer]()
        expected, nodes = (size(shape)[1],) * 2 if asked["part"] == "graph" else (ANSWER, 1)
        begun = process_time()
        for _ in range(asked["runs"]):
            result = made[key]()
            assert result == expected, result
        yield 1e6 * (process_time() - begun) / asked["runs"] / nodes


def main() -> None:
    for us in answers(sys.argv[1], sys.stdin):
        print(json.dumps({"us": us}), flush=True)


if __name__ == "__main__":
    main()
