"""ByModel: models take turns, so that the weights of one at a time have to be there.

Paper:  "SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts", 2024
Idea:   all requests of a batch that ask one expert run before those of the next, which is said beforehand so
        that its weights are copied meanwhile. A turn ends when nothing of its model is left, or after so many
        steps while others wait; next is who had no turn for the longest time, the oldest request first
Shapes: View -> the inner scheduler's Step over the sequences of one model, and whose turn comes after
Cost:   O(running + waiting) per step
Claims: sn40l
Differs: a turn has an end, as requests come while others run; the publication's batches are closed
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from lightwork.errors import RangeError
from lightwork.serve.schedulers import Scheduler, Step, View
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Sequence as Seq


@dataclass(slots=True)
class State:
    """turn: whose it is. steps: of this turn. next: who was told to be next. turns: by model, the number of
    its latest.

    inner: a state of the inner scheduler for each model. untold: who came since that was asked. pins: the
    engine's names of the inner schedulers' pins.
    """

    turn: str | None = None
    steps: int = 0
    next: str | None = None
    turns: dict[str, int] = field(default_factory=dict)
    inner: dict[str, Any] = field(default_factory=dict)
    untold: dict[str, list[Seq]] = field(default_factory=dict)
    pins: dict[tuple[str, int], int] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByModel:
    """inner: among the sequences of one model. max_steps: of a turn while other models have work."""

    inner: Scheduler[Any] = field(default_factory=Sarathi)
    max_steps: int = 256

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise RangeError(
                f"ByModel cannot run max_steps={self.max_steps}", expected="max_steps >= 1", fix="ByModel()"
            )

    def init(self) -> State:
        return State()

    def plan(self, state: State, view: View) -> Step:
        waiting, running = _by_model(view.waiting), _by_model(view.running)
        for model, came in _by_model(view.arrived).items():
            state.untold.setdefault(model, []).extend(came)
        order = self._order(state, waiting, running) or [*state.inner]
        for model in order:
            step = self._plan(state, view, model, waiting.get(model, []), running.get(model, []))
            if not step.changes_nothing:
                if step.chunks:
                    self._took(state, model, order)
                    step.next_model = state.next
                return step
        return Step()

    def _plan(self, state: State, view: View, model: str, waiting: list[Seq], running: list[Seq]) -> Step:
        """The inner scheduler's step, as if there were only this model."""
        if model not in state.inner:
            state.inner[model] = self.inner.init()
        places = view.limits.max_seqs - len(view.running) + len(running)
        seen = replace(
            view,
            waiting=waiting,
            running=running,
            arrived=state.untold.pop(model, []),
            limits=replace(view.limits, max_seqs=places),
        )
        step = self.inner.plan(state.inner[model], seen)
        for i, pin in enumerate(step.pins):
            name = state.pins[model, pin.name] = next(state.names)
            step.pins[i] = pin._replace(name=name)
        step.unpins = [state.pins.pop((model, name)) for name in step.unpins]
        return step

    def _order(self, state: State, waiting: dict[str, list[Seq]], running: dict[str, list[Seq]]) -> list[str]:
        """Models that have work, whose turn it is first; who cannot run lets the next one."""
        oldest = {
            model: min(seq.id for found in (waiting, running) for seq in found.get(model, ()))
            for model in {**running, **waiting}
        }
        order = sorted(oldest, key=lambda model: (state.turns.get(model, -1), oldest[model]))
        if state.next in order:
            order.remove(state.next)
            order.insert(0, state.next)
        if state.turn in order:
            order.remove(state.turn)
            order.insert(0 if state.steps < self.max_steps else len(order), state.turn)
        return order

    def _took(self, state: State, model: str, order: list[str]) -> None:
        """A step of this model is run. Whoever was told to be next stays that while it has work."""
        if model != state.turn:
            state.turn, state.steps = model, 0
            state.turns[model] = max(state.turns.values(), default=0) + 1
        state.steps += 1
        others = [other for other in order if other != model]
        if state.next not in others:
            state.next = others[0] if others else None


def _by_model(seqs: Any) -> dict[str, list[Seq]]:
    found: dict[str, list[Seq]] = {}
    for seq in seqs:
        found.setdefault(seq.request.model, []).append(seq)
    return found
