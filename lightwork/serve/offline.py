"""A model in this process: prompts in, texts out, without a server.

The engine is the one that `lightwork serve` opens, with every technique; its loop runs on the caller's thread
while `generate` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from lightwork.decode.constraints import Constraint, grammars
from lightwork.decode.sampling import Pick, Sampling, usual
from lightwork.errors import RangeError
from lightwork.runtime.clock import WallClock, local_date
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.progress import Progress
from lightwork.runtime.trace import Trace
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import FinishReason, Request, check_request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.serve.text import TextOutput

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A text, its token ids, or a conversation: role and content of each message."""

KEPT_SPANS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What became of one prompt.

    picks: its tokens, with log-probabilities if they were asked for. reason: "stop" at an end token or a
    stop string, "length" at max_tokens. cached: prompt tokens found in the prefix cache. drafted, accepted:
    guesses that were checked, and that were right.
    """

    text: str
    picks: tuple[Pick, ...]
    reason: FinishReason
    prompt_tokens: int
    cached: int
    drafted: int
    accepted: int

    @property
    def tokens(self) -> list[int]:
        return [pick.token for pick in self.picks]


class LLM:
    """A plan's model, loaded and ready to answer. plan: or the name of a model, served with nothing else.

    settings: what was derived for it, each with its reason. trace: of what its engine did lately. To be
    closed when done, or used in a `with`. Raises CheckpointError, SpecError.
    """

    def __init__(self, plan: Plan | str = "tiny:llama", *, progress: Progress | None = None) -> None:
        self.plan = Plan(model=plan) if isinstance(plan, str) else plan
        self.trace = Trace(f"real: {self.plan.on}", keep=KEPT_SPANS)
        self._kernel = Kernel(WallClock(), trace=self.trace)
        self._engine, self._model, self.settings = open_engine(self.plan, self._kernel, progress)
        self._model.warm_up()
        self.tokenizer = self._model.tokenizer

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 256,
        sampling: Sampling | Sequence[Sampling] | None = None,
        stop: Sequence[str] = (),
        model: str = "",
        constraint: Constraint | None = None,
    ) -> list[Completion]:
        """A completion for each prompt, in their order, computed together.

        A conversation is written as the model's template says. sampling: of all, or of each; None: as the
        checkpoint's generation_config.json says, with a seed for each. stop: strings that end a text, and are
        not part of it. model: which of several, "" the plan's own. constraint: what each text has to be.
        Nothing is computed if one of the prompts or the constraint is refused: RangeError, CapacityError,
        UsageError. Raises what a text failed with, after the others have ended.
        """
        ids = [self._ids(prompt) for prompt in prompts]
        hows = self._each(sampling, len(ids))
        ends = self.tokenizer.eos_ids
        if constraint is not None:
            grammars(self.tokenizer, self._engine.vocab_size).matcher(constraint)
        asked = Request(prompt=(), max_tokens=max_tokens, stop_ids=ends, model=model, constraint=constraint)
        requests = [replace(asked, prompt=tuple(i), sampling=how) for i, how in zip(ids, hows, strict=True)]
        for request in requests:
            check_request(request, self._engine.limits, self._engine.kv_tokens, 0)
        outputs = [_Output(TextOutput(self.tokenizer, stop, ends)) for _ in requests]
        window = self._engine.limits.max_waiting
        for begin in range(0, len(requests), window):
            self._serve(requests[begin : begin + window], outputs[begin : begin + window])
        return [output.completion() for output in outputs]

    def close(self) -> None:
        """End its processes, if it has any, and give back its memory."""
        self._engine.close()
        self._model.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_special=True)
        numbers = [part for part in prompt if isinstance(part, int)]
        messages = [part for part in prompt if isinstance(part, Mapping)]
        return self.tokenizer.chat(messages, now=local_date()) if messages else numbers

    def _each(self, sampling: Sampling | Sequence[Sampling] | None, num: int) -> Sequence[Sampling]:
        if sampling is None:
            return [usual(self._model.generation, seed=i) for i in range(num)]
        if isinstance(sampling, Sampling):
            return [sampling] * num
        if len(sampling) != num:
            raise RangeError(f"{len(sampling)} samplings for {num} prompts", expected="one, or one for each")
        return sampling

    def _serve(self, requests: Sequence[Request], outputs: Sequence[_Output]) -> None:
        try:
            run_load(self._engine, [0.0] * len(requests), requests, outputs)
        finally:  # after Ctrl-C
            self._engine.cancel(self._engine.unfinished())


@dataclass(slots=True)
class _Output:
    """A sink that keeps what one prompt brings."""

    writer: TextOutput
    text: str = ""
    picks: list[Pick] = field(default_factory=list)
    ended: tuple[Seq, FinishReason, Exception | None] | None = None

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None:
        """Nobody can ask for these here."""

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> int | None:
        text, stands = self.writer.push(picks)
        self.text += text
        self.picks += picks if stands is None else picks[:stands]
        return stands

    def finish(self, seq: Seq, reason: FinishReason, error: Exception | None) -> None:
        self.text += self.writer.flush() if reason in ("stop", "length") else ""
        self.ended = seq, reason, error

    def completion(self) -> Completion:
        assert self.ended is not None
        seq, reason, error = self.ended
        if error is not None:
            raise error
        return Completion(
            text=self.text,
            picks=tuple(self.picks),
            reason=reason,
            prompt_tokens=seq.prompt_len,
            cached=seq.cached,
            drafted=seq.drafted,
            accepted=seq.accepted,
        )
