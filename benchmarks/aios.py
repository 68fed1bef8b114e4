"""What a system call costs: CPU of a call through AIOS over the same call without it, and of a place alone.

    python benchmarks/aios.py

The queue is empty, the clock is real, the tool does nothing. The published system takes up to a second there:
it fills a batch for as long.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from statistics import median
from time import process_time
from typing import Any

from _report import report

from lightwork.agents.aios.system import AIOS, Agent
from lightwork.agents.chat_model import ToolCall
from lightwork.agents.tool import Tool, Toolbox
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.queue import Queue

CALLS, ROUNDS = 2000, 9
BAR_US = 100.0
NOTHING = Tool(
    name="nothing",
    description="",
    parameters={"type": "object", "properties": {}},
    fn=lambda: None,
    limit=1,
    inline=True,
)


def cpu_us(start: Callable[[Kernel], Coroutine[Any, Any, None]]) -> float:
    """Of one call, all threads."""
    kernel = Kernel(WallClock())
    main = start(kernel)
    begin_s = process_time()
    kernel.run(main)
    return (process_time() - begin_s) / CALLS * 1e6


async def through_toolbox(kernel: Kernel) -> None:
    tools = Toolbox.of(kernel, [NOTHING])
    for _ in range(CALLS):
        await tools.call(ToolCall("", "nothing", {}))


async def through_system(kernel: Kernel) -> None:
    tools = AIOS(kernel, {}, [NOTHING]).context(Agent("agent")).tools
    for _ in range(CALLS):
        await tools.call(ToolCall("", "nothing", {}))


async def place_alone(kernel: Kernel) -> None:
    queue = Queue(kernel, "place")
    for _ in range(CALLS):
        turn = queue.turn()
        await queue.take(turn)
        queue.leave(turn)


def main() -> None:
    ways = {"toolbox": through_toolbox, "system": through_system, "place": place_alone}
    rounds = [{name: cpu_us(way) for name, way in ways.items()} for _ in range(ROUNDS)]
    us = {f"{name}_us": round(median(r[name] for r in rounds), 2) for name in ways}
    added = median(r["system"] - r["toolbox"] for r in rounds)
    row = report("aios", calls=CALLS, rounds=ROUNDS, **us, added_us=round(added, 2), bar_us=BAR_US)
    verdict = "holds" if row["added_us"] <= BAR_US else "MISSED"
    print(f"a system call adds {row['added_us']:g} us of CPU, a place {us['place_us']:g}: {verdict}")


if __name__ == "__main__":
    main()
