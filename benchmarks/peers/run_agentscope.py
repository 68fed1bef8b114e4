"""Run by the Python of AgentScope 0.1: what a call of an agent on one of its servers takes.

    python run_agentscope.py

Two agents on a server of its own process, 1,000 calls sent before the first answer is read. Prints the CPU
microseconds of both processes per call.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from agentscope.agents import AgentBase
from agentscope.message import Msg
from agentscope.server import RpcAgentServerLauncher

CALLS = 1000


class Adder(AgentBase):
    """Adds what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.total = 0

    def reply(self, x: Msg | None = None) -> Msg:
        self.total += int(x.content) if x is not None else 0
        return Msg(name=self.name, role="assistant", content=str(self.total))


def cpu_s() -> float:
    """Of this process and its descendants."""
    own, tick_s, found = os.getpid(), 1 / os.sysconf("SC_CLK_TCK"), 0.0
    parents: dict[int, int] = {}
    taken: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            taken[int(entry.name)] = (int(fields[11]) + int(fields[12])) * tick_s
    for pid in parents:
        above = pid
        while above not in (0, own):
            above = parents.get(above, 0)
        found += taken[pid] if above == own else 0.0
    return found


def main() -> None:
    launcher = RpcAgentServerLauncher(host="localhost", port=12010, local_mode=True, agent_dir=__file__)
    launcher.launch(in_subprocess=True)
    agents = [Adder(f"adder {i}").to_dist(host="localhost", port=12010) for i in range(2)]
    message = Msg(name="main", role="user", content="1")
    for agent in agents:
        _ = agent(message).content
    begun = cpu_s()
    answers = [agents[i % 2](message) for i in range(CALLS)]
    total = sum(int(answer.content) for answer in answers)
    print(json.dumps({"us_per_call": 1e6 * (cpu_s() - begun) / CALLS, "total": total}))
    launcher.shutdown()


if __name__ == "__main__":
    main()
