"""From serial trajectories to layered ones: all calls that can be made at once become one turn.

    found = await layered(trajectory, Provenance())
    if isinstance(found, Rejected): print(found.why)
    else: learn(samples(found))

Source: Divide-Then-Aggregate (Zhu et al., 2025), section 3: dependency graph, checks of its structure, levels
by longest path, thoughts of merged calls made one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lightwork.agents.dependencies import DependencyOracle, Needs
from lightwork.agents.graph import layers
from lightwork.agents.tool import Observation
from lightwork.agents.trajectories import Trajectory, Turn
from lightwork.errors import UsageError

Why = Literal[
    "no calls", "incoherent", "missing step", "unknown step", "several sources", "cycle", "two sinks"
]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A trajectory that nothing is learnt from. about: which steps, and what is the matter."""

    why: Why
    about: str


async def layered(trajectory: Trajectory, oracle: DependencyOracle) -> Trajectory | Rejected:
    """The same calls and observations in as few turns as dependencies allow.

    The oracle is asked again while turns change, so that a layered trajectory stays as it is: only steps of
    earlier turns can be needed, so levels only fall, and it ends.
    """
    if refused := _incoherent(trajectory):
        return refused
    now = trajectory
    while True:
        try:
            needs = await oracle.needs(now)
        except UsageError as error:
            return Rejected("incoherent", str(error))
        if refused := check(now, needs):
            return refused
        found = _by_level(now, needs)
        if found.groups == now.groups and found.steps == now.steps:
            return _with_thoughts(found, trajectory)
        now = found


def check(trajectory: Trajectory, needs: Needs) -> Rejected | None:
    """What is wrong with a dependency graph: the question must be its only source and the answer its only
    sink."""
    end = len(trajectory.steps) + 1
    numbers = set(range(1, end + 1))
    named = set(needs).union(*needs.values()) - {0} if needs else set()
    if named - numbers or 0 in needs:
        return Rejected("unknown step", f"there is no step {_listed(named - numbers) or 0} to be told of")
    if numbers - named:
        return Rejected("missing step", f"nothing is said of {_listed(numbers - named)}")
    sources = [i for i in numbers if not needs.get(i)]
    if sources:
        return Rejected("several sources", f"{_listed(sources)} need nothing, not even the question")
    try:
        layers({i: [u for u in needs[i] if u] for i in sorted(numbers)})
    except UsageError as error:
        return Rejected("cycle", str(error))
    sinks = numbers - set().union(*needs.values())
    if sinks != {end}:
        return Rejected("two sinks", f"nothing needs {_listed(sinks - {end})}, nor is that the answer")
    late = [i for group in trajectory.groups for i in group if max(needs[i]) >= group[0]]
    if late:
        return Rejected("incoherent", f"{_listed(late)} need what was only found later")
    return None


def _incoherent(trajectory: Trajectory) -> Rejected | None:
    steps = trajectory.steps
    if not steps or not all(turn.seen for turn in trajectory.turns):
        return Rejected("no calls", "the question was answered, or a turn taken, without a call")
    if not trajectory.answer:
        return Rejected("incoherent", "there is no answer")
    failed = [i for i, step in enumerate(steps, 1) if step.error]
    if failed:
        return Rejected("incoherent", f"{_listed(failed)} failed")
    calls = [(step.call.name, dict(step.call.arguments)) for step in steps]
    again = [i for i, call in enumerate(calls, 1) if call in calls[: i - 1]]
    if again:
        return Rejected("incoherent", f"{_listed(again)} were made before")
    return None


def _by_level(trajectory: Trajectory, needs: Needs) -> Trajectory:
    """Turns of the steps of one level each, in their order; thoughts are not looked at."""
    steps = trajectory.steps
    levels = layers({i: [u for u in needs[i] if u] for i in range(1, len(steps) + 1)})
    return replace(trajectory, turns=tuple(Turn("", tuple(steps[i - 1] for i in level)) for level in levels))


def _with_thoughts(found: Trajectory, before: Trajectory) -> Trajectory:
    """One thought for each turn. Those of turns that did not change stay, but for one after a turn that was
    merged: it tells what there is now."""
    of_step = {id(step): turn.thought for turn in before.turns for step in turn.seen}
    same = {tuple(map(id, turn.seen)) for turn in before.turns}
    turns: list[Turn] = []
    merged: tuple[Observation, ...] = ()
    for turn in found.turns:
        thoughts = dict.fromkeys(filter(None, (of_step[id(step)].strip() for step in turn.seen)))
        turns.append(Turn(_after(merged, _fused([*thoughts])), turn.seen))
        merged = () if tuple(map(id, turn.seen)) in same else turn.seen
    return replace(found, turns=tuple(turns), thought=_after(merged, before.thought))


def _fused(thoughts: list[str]) -> str:
    if len(thoughts) < 2:
        return "".join(thoughts)
    return f"I can do {len(thoughts)} things at once, as none needs another. " + " ".join(thoughts)


def _after(merged: tuple[Observation, ...], thought: str) -> str:
    if not merged or not thought:
        return thought
    names = [f"{step.call.name}({', '.join(map(str, step.call.arguments.values()))})" for step in merged]
    return f"I have what {', '.join(names[:-1])} and {names[-1]} gave. {thought}" if names[1:] else thought


def _listed(numbers: object) -> str:
    return ", ".join(f"step {i}" for i in sorted(numbers))  # type: ignore[call-overload]
