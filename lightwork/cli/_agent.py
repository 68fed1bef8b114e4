"""`lightwork agent`: one question, answered on this machine's clock, and what became of each call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from lightwork.agents.chat_model import ChatModel
from lightwork.agents.child_output import ChildOutput
from lightwork.agents.context import Budget, Context, Result
from lightwork.agents.functions import load_tools
from lightwork.agents.programs import Program
from lightwork.agents.programs.llm_compiler import LlmCompiler
from lightwork.agents.tool import Observation, Tool, Toolbox
from lightwork.cli._output import show_table
from lightwork.cli._plan_file import choose
from lightwork.errors import RangeError, UsageError
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.timeline import Lane, in_units
from lightwork.runtime.trace import Trace
from lightwork.techniques import kind_of, parse

if TYPE_CHECKING:
    from lightwork.runtime.trace import Span

WORLD = "world:"
BUILT_IN = "tiny:"
SHOWN, LABEL = 60, 20
REMOTE = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and what may be called for it."""

    question: str
    tools: list[Tool]


def read(question: str | None, sources: Sequence[str], seed: int) -> Asked:
    """The question of a command line, and the tools of its --tools. Raises SpecError, UsageError."""
    tools: list[Tool] = []
    for source in sources:
        if source.startswith(WORLD):
            own, found = _world(source.removeprefix(WORLD), seed)
            question = question or own
        else:
            with ChildOutput():
                found = load_tools(source)
        tools += found
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
    if not question:
        raise UsageError(
            "there is no question", expected="text", fix="lightwork agent 'a question' --tools my_tools.py"
        )
    return Asked(question, tools)


def _world(level: str, seed: int) -> tuple[str, list[Tool]]:
    """A question that the built-in models never saw, and its tools."""
    from lightwork.agents.world_tools import world_tools
    from lightwork.agents.worlds.plan_world import MAX_LEVEL, PlanWorld

    if not level.isdecimal() or not 1 <= int(level) <= MAX_LEVEL:
        raise RangeError(
            f"world:{level[:40]} is unknown", expected=f"world:1 to world:{MAX_LEVEL}", fix="world:2"
        )
    episode = PlanWorld(split="heldout").sample(Random(seed), int(level))
    return episode.question, world_tools(episode)


def chosen(use: Sequence[str]) -> tuple[Program, tuple[str, ...]]:
    """The program of a command line, and the techniques left for the engine. Raises SpecError."""
    programs = {text: parse(text) for text in use}
    found = {text: one for text, one in programs.items() if kind_of(one) == "program"}
    if len(found) > 1:
        raise UsageError(f"{' and '.join(found)} are both programs", expected="one program")
    program: Program = next(iter(found.values()), LlmCompiler())
    return program, tuple(text for text in use if text not in found)


def write(piece: str) -> None:
    print(piece, end="", flush=True)


class Run:
    """One question. says: shown what the model writes, as it comes. result, trace: once it is answered."""

    def __init__(
        self, asked: Asked, program: Program, says: Callable[[str], None] | None, *, turns: int, calls: int
    ) -> None:
        self.result = Result("")
        self.trace = Trace("real: agent")
        self._asked, self._program, self._says = asked, program, says
        self._budget = Budget(turns=turns, calls=calls)
        self._children = ChildOutput()
        self._begin_s = 0.0

    def answer(self, model: str, on: str | None, techniques: tuple[str, ...]) -> None:
        """Raises what the model fails with."""
        kernel = Kernel(WallClock(), trace=self.trace)
        toolbox = Toolbox.of(kernel, self._asked.tools)
        with _opened(kernel, model, on, techniques) as opened:
            trained = opened.name.startswith(BUILT_IN)
            context = Context(kernel, {"": opened}, toolbox, self._budget, trained=trained)
            self._begin_s = context.start_s
            if self._says is not None:
                context.says = self._says
                self._says(f"question  {self._asked.question}\n\n")
            try:
                with self._children:
                    self.result = kernel.run(self._program.run(context, self._asked.question))
            except Exception:
                print(self._children.rest, end="", file=sys.stderr)  # a library may have said there why
                raise

    def show(self) -> None:
        """Print the calls, when they ran, and the answer."""
        from lightwork.cli.trace import picture

        spans = self._spans()
        begin_s = self._begin_s
        rows = [
            (
                call.id,
                call.name,
                _short(", ".join(f"{k}={v!r}" for k, v in call.arguments.items()) or call.raw),
                _short(seen.text),
                in_units(spans[call.id].start_s - begin_s) if call.id in spans else "-",
                in_units(spans[call.id].end_s - spans[call.id].start_s) if call.id in spans else "-",
            )
            for seen in self.result.observations
            for call in [seen.call]
        ]
        print("\n")
        if rows:
            show_table(("id", "tool", "arguments", "answer", "began", "took"), rows)
            print()
        if drawn := self._drawn():
            picture(self._lanes(), begin_s, max(span.end_s for span in drawn), None)
            print()
        usage = self.result.usage
        print(f"turns {self.result.turns}  tokens {usage.prompt} in, {usage.completion} out")
        if self.result.answer:
            print(f"answer  {self.result.answer}")

    def to_dict(self) -> dict[str, Any]:
        """For machines. Times in seconds since the run began. printed: by child processes of tools, where it
        is not known for which call.
        """
        spans, result = self._spans(), self.result
        return {
            "question": self._asked.question,
            "program": repr(self._program),
            "answer": result.answer,
            "why": result.why,
            "calls": [_told(seen, spans.get(seen.call.id), self._begin_s) for seen in result.observations],
            "said": [message.content for message in result.messages if message.role == "assistant"],
            "turns": result.turns,
            "usage": asdict(result.usage),
            "printed": str(self._children.rest),
        }

    def _spans(self) -> dict[str, Span]:
        """Of calls, by id."""
        return {span.args["id"]: span for span in self.trace.spans if span.kind == "tool" and span.args}

    def _drawn(self) -> list[Span]:
        return [span for span in self.trace.spans if span.kind in ("turn", "tool")]

    def _lanes(self) -> list[Lane]:
        """One of the model, and one of each call in the order of their ids."""
        spans = self._spans()
        turns = [span for span in self.trace.spans if span.kind == "turn"]
        lanes = [_lane("model", turns)] if turns else []
        for seen in self.result.observations:
            if seen.call.id in spans:
                lanes.append(_lane(f"{seen.call.id} {seen.call.name}"[:LABEL], [spans[seen.call.id]]))
        return lanes


def _lane(rank: str, spans: Sequence[Span]) -> Lane:
    busy_s = sum(span.end_s - span.start_s for span in spans)
    return Lane(rank=rank, spans=tuple(spans), busy_s=busy_s, by_kind={spans[0].kind: busy_s})


def _told(seen: Observation, span: Span | None, begin_s: float) -> dict[str, Any]:
    call = seen.call
    told: dict[str, Any] = {"id": call.id, "tool": call.name, "arguments": dict(call.arguments)}
    told |= {"error": seen.error} if seen.error else {"answer": seen.text}
    if seen.note:
        told["printed"] = seen.note
    if span is not None:
        told |= {"start_s": span.start_s - begin_s, "end_s": span.end_s - begin_s}
    return told


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."


@contextmanager
def _opened(kernel: Kernel, model: str, on: str | None, techniques: tuple[str, ...]) -> Iterator[ChatModel]:
    """The model, which ends with the block."""
    if model.startswith(REMOTE):
        from lightwork.agents.http_model import HttpModel
        from lightwork.cli._chat import Chat
        from lightwork.cli._server import Server

        with Server(model, use=techniques) as server:
            remote = HttpModel(kernel, f"{server.url}/v1", Chat(server).model(), api_key=server.api_key)
            try:
                yield remote
            finally:
                remote.close()
        return
    from lightwork.agents.engine_model import open_model

    local = open_model(choose(model, on, techniques, "cpu").plan(), kernel, name=model)
    try:
        yield local
    finally:
        local.close()
