"""DTA-Llama: steps and latency on StableToolBench in simulation, and small planners trained on turns.

Simulated rows share one profile of the model and one of the tools, see `_stable_tool_bench`. Real rows are of
two planners of a million parameters that learnt the same questions, see `_dta_planners`.
"""

from __future__ import annotations

from statistics import mean

from lightwork.claims import Lab, Measured, claim
from lightwork.claims._dta_planners import asked
from lightwork.claims._stable_tool_bench import (
    CALL,
    PROFILE,
    PUBLISHED,
    Method,
    calls_of_a_turn,
    seconds,
    tool_s,
)

PREDICTED: tuple[Method, ...] = ("DFSDT", "LLMCompiler", "DTA")


def published_s(method: Method) -> float:
    return mean(PUBLISHED[method].latency_s)


def steps(method: Method) -> float:
    return mean(PUBLISHED[method].steps)


@claim(
    "dta_llama",
    title="StableToolBench, the worst error of three methods' average latency, tools fitted to ReAct's alone",
    paper="104, 68 and 32 s (our bar 0.2)",
    expect=0.2,
    within=0.0,
    bound="at most",
    mode="simulated",
    unit="",
)
def averages_follow_from_one_profile(lab: Lab) -> Measured:
    found = {method: mean(seconds(method, lab.seed)) for method in PREDICTED}
    note = ", ".join(f"{method} {s:.0f} s for {published_s(method):.0f}" for method, s in found.items())
    worst = max(abs(s / published_s(method) - 1) for method, s in found.items())
    return Measured(worst, f"{note}; a call takes {tool_s():.1f} s")


@claim(
    "dta_llama",
    title="the same, latency of ReAct over DTA",
    paper="1.22x",
    expect=1.22,
    within=0.1,
    mode="simulated",
)
def faster_than_one_call_at_a_time(lab: Lab) -> Measured:
    react, dta = (mean(seconds(method, lab.seed)) for method in ("ReAct", "DTA"))
    bare, layers = (mean(seconds(method, lab.seed, 0.0)) for method in ("ReAct", "DTA"))
    note = f"{steps('DTA') / steps('ReAct'):.2f}x the steps; {bare / layers:.2f}x if tools took no time"
    return Measured(react / dta, note)


@claim(
    "dta_llama",
    title="the same, seconds of a step, DTA over ReAct",
    paper="13.1 s over 10.9 s",
    expect=1.2,
    within=0.1,
    mode="simulated",
)
def longer_steps(lab: Lab) -> Measured:
    """Why 0.68x the steps are not 1.47x as fast: a turn of calls writes more, and waits for the slowest."""
    dta, react = (mean(seconds(method, lab.seed)) / steps(method) for method in ("DTA", "ReAct"))
    more = (
        calls_of_a_turn() - 1
    )  # a second call, in so many turns: the slower of two takes 1.5 times the mean
    written_s, waited_s = more * CALL / PROFILE.tokens_per_s, more * tool_s() / 2
    note = f"a turn of {1 + more:.1f} calls writes {written_s:.1f} s and waits {waited_s:.1f} s longer"
    return Measured(dta / react, note)


@claim(
    "dta_llama",
    title="model turns of a planner trained on layered turns, over one trained on the same in serial",
    paper="2.41 / 3.56 steps (our bar 0.7)",
    expect=0.7,
    within=0.0,
    bound="at most",
    mode="real",
)
def fewer_turns(lab: Lab) -> Measured:
    layered, serial = asked("layered", lab.seed), asked("serial", lab.seed)
    num = layered.questions
    return Measured(
        layered.turns / serial.turns,
        f"{layered.turns / num:.2f} and {serial.turns / num:.2f} turns, {num} questions about unknown tools",
    )


@claim(
    "dta_llama",
    title="the same, questions answered right",
    paper="66.1 and 37.9 % solved (our bar 1)",
    expect=1.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def as_many_right(lab: Lab) -> Measured:
    layered, serial = asked("layered", lab.seed), asked("serial", lab.seed)
    note = f"{layered.right} and {serial.right} of {layered.questions}"
    return Measured(layered.right / serial.right, note)


@claim(
    "dta_llama",
    title="the same, tokens read and written",
    paper="fewer",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def fewer_tokens(lab: Lab) -> Measured:
    layered, serial = asked("layered", lab.seed), asked("serial", lab.seed)
    num = layered.questions
    note = f"{layered.tokens / num:.0f} and {serial.tokens / num:.0f} a question"
    return Measured(layered.tokens / serial.tokens, note)
