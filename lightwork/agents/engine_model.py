"""The serving engine as a model that programs talk to: in this process, on the program's own kernel.

    model = open_model("tiny:llama", kernel)                                  # for real, on this machine
    model = open_model(Plan(model="shape:llama-3-8b", on="sim:h100x8"), kernel, policy)   # in virtual time
    model = open_model("tiny:llama", kernel, policy)                          # a teacher, see teacher.py
    reply = await model.stream(ChatRequest((Message("user", "hello"),))).reply()

Sequences of all programs share the engine's steps, KV blocks and prefix cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lightwork.agents.chat_model import ChatRequest, ChatStream, Usage
from lightwork.agents.policies import Policy, play
from lightwork.agents.replies import ReplyWriter, function_dicts, message_dict
from lightwork.agents.teacher import open_teacher
from lightwork.decode.sampling import Pick, usual
from lightwork.errors import NotReadyError, SpecError, UsageError
from lightwork.models import resolve
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import local_date
from lightwork.runtime.futures import Task
from lightwork.runtime.kernel import Kernel
from lightwork.serve.call_grammar import Signature, check_template, free_or_strict
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import FinishReason, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulated import open_simulated
from lightwork.serve.text import TextOutput

TOKENIZER = "tiny:llama"
"""Whose tokens are counted where a simulated model is only a shape."""


class EngineModel:
    """An engine on this kernel, which runs from the first request on. name: as users know it. generation: the
    model's generation_config.json, for what a request leaves open. script: what sequences of a simulated
    engine say. closing: what else to end.

    Replies are held to the schemas of tools that say "strict": True, as by the server. Their picks are always
    told. A reply that is cancelled frees its blocks, and has what had come.
    """

    def __init__(
        self,
        engine: Engine | Fleet,
        tokenizer: Tokenizer,
        *,
        name: str = "engine",
        generation: Mapping[str, Any] | None = None,
        script: PlayedScript | None = None,
        closing: Callable[[], object] | None = None,
    ) -> None:
        self.name, self.engine, self.tokenizer = name, engine, tokenizer
        self._generation, self._script, self._closing = generation or {}, script, closing
        self._running: Task | None = None

    def stream(self, request: ChatRequest) -> ChatStream:
        kernel = self.engine.kernel
        stream = ChatStream(kernel)
        output = TextOutput(self.tokenizer, request.stop, self._ends)
        try:
            sink = _Sink(ReplyWriter(request, stream), output, self._script)
            says = self._script.tokens(request) if self._script is not None else []
            seqs = self.engine.submit(self.engine_request(request), sink)
        except Exception as error:
            stream.fail(error)
            return stream
        if self._running is None:
            self._running = kernel.spawn(self.engine.run(), name=f"engine of {self.name}")
        if self._script is not None:
            self._script.says[seqs[0].id] = says  # before the engine's next step
        stream.stop = partial(self._cancel, sink, seqs)
        return stream

    def engine_request(self, request: ChatRequest) -> Request:
        """What the engine is asked. Raises UsageError for what the model's template cannot say, RangeError
        for impossible values."""
        how = replace(
            usual(self._generation),
            temperature=request.temperature,
            seed=request.seed,
            logprobs=request.logprobs or None,
        )
        functions = [Signature(t["name"], t.get("parameters"), t.get("strict", False)) for t in request.tools]
        held = free_or_strict(functions)
        if held is not None and request.prefix:
            raise UsageError(
                "a reply that is begun cannot be held to the schemas of strict tools",
                expected="no prefix, or tools that are not strict",
            )
        return Request(
            prompt=tuple(self.prompt(request)),
            max_tokens=request.max_tokens,
            sampling=how,
            stop_ids=self._ends,
            constraint=held,
            tenant=request.tenant,
            priority=request.priority,
        )

    def prompt(self, request: ChatRequest) -> list[int]:
        """The conversation as the model sees it, and how its reply begins."""
        if request.tools:
            check_template(self.tokenizer.chat_template)
        now = None if self.engine.kernel.clock.virtual else local_date()
        messages = [message_dict(message) for message in request.messages]
        text = self.tokenizer.chat_text(messages, tools=function_dicts(request), now=now)
        return self.tokenizer.encode(text + request.prefix)

    def close(self) -> None:
        """End the engine and what computes for it; replies that are not whole fail."""
        self.engine.cancel(self.engine.unfinished())
        if self._running is not None:
            self._running.cancel()
        self.engine.close()
        if self._closing is not None:
            self._closing()

    @property
    def _ends(self) -> frozenset[int]:
        return self.tokenizer.eos_ids

    def _cancel(self, sink: _Sink, seqs: Sequence[Seq]) -> None:
        sink.unwanted = True
        self.engine.cancel(seqs)


class _Sink:
    """From an engine's tokens to a reply."""

    def __init__(self, writer: ReplyWriter, output: TextOutput, script: PlayedScript | None) -> None:
        self._writer, self._output, self._script = writer, output, script
        self._picks: list[Pick] = []
        self.unwanted = False

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None:
        """Nobody can ask for these here."""

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> int | None:
        text, stands = self._output.push(picks)
        self._picks += picks if stands is None else picks[:stands]
        self._writer.push(text)
        return stands

    def finish(self, seq: Seq, reason: FinishReason, error: Exception | None) -> None:
        usage = Usage(seq.prompt_len, seq.num_output, seq.cached)
        if self._script is not None:
            self._script.says.pop(seq.id, None)
        if reason in ("stop", "length"):
            self._writer.push(self._output.flush())
            self._writer.end("stop" if reason == "stop" else "length", usage, tuple(self._picks))
        elif self.unwanted:
            self._writer.end("length", usage, tuple(self._picks))
        else:
            ended = NotReadyError("the engine ended before the reply was complete", expected="one that runs")
            self._writer.stream.fail(error or ended)


class PlayedScript:
    """What the sequences of a simulated engine say: a policy, played when each begins. says: the tokens of
    those that have begun, by their id."""

    def __init__(self, policy: Policy, tokenizer: Tokenizer) -> None:
        self.says: dict[int, list[int]] = {}
        self._policy, self._tokenizer = policy, tokenizer
        self._end = min(tokenizer.eos_ids)

    def tokens(self, request: ChatRequest) -> list[int]:
        return [*self._tokenizer.encode(play(self._policy, request)), self._end]

    def __call__(self, seq: Seq, position: int) -> int:
        says, at = self.says.get(seq.id, ()), position - seq.prompt_len
        return says[at] if at < len(says) else self._end


def open_model(
    plan: Plan | str, kernel: Kernel, policy: Policy | None = None, *, name: str = ""
) -> EngineModel:
    """Load a plan's model.

    policy: what it says. Needed where the plan is simulated (`on="sim:..."`): an engine there lets time pass
    and computes nothing. Elsewhere the engine's model is a TeacherLM of it. Raises SpecError,
    CheckpointError, CapacityError.
    """
    if isinstance(plan, str):
        plan = Plan(model=plan)
    name = name or plan.model
    if plan.on.startswith("sim:"):
        return _simulated(plan, kernel, policy, name)
    opener = open_engine if policy is None else partial(open_teacher, policy)
    engine, model, _ = opener(plan, kernel)
    model.warm_up()
    return EngineModel(engine, model.tokenizer, name=name, generation=model.generation, closing=model.close)


def _simulated(plan: Plan, kernel: Kernel, policy: Policy | None, name: str) -> EngineModel:
    if policy is None:
        raise SpecError(
            f"a model on {plan.on} takes time and says nothing",
            expected="a policy that says what it would",
            fix="open_model(plan, kernel, policy)",
        )
    tokenizer = Tokenizer(resolve(TOKENIZER if plan.model.startswith("shape:") else plan.model))
    script = PlayedScript(policy, tokenizer)
    engine, _ = open_simulated(plan, kernel, script=script)
    return EngineModel(engine, tokenizer, name=name, script=script)
