"""What was asked (`Request`) and how far it is (`Sequence`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from lightwork.decode.acceptance import Acceptance
from lightwork.decode.constraints import Constraint, Matcher
from lightwork.decode.sampling import Pick, Sampling
from lightwork.errors import BusyError, CapacityError, RangeError

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one engine accepts.

    max_len: tokens of a sequence, prompt and output. max_waiting: queue length. models: what requests may
    name beside "", now; None: anything.
    """

    max_len: int
    max_seqs: int = 128
    max_waiting: int = 4096
    models: Collection[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One accepted request: n continuations of a prompt.

    max_tokens: output tokens per continuation. stop_ids: tokens that end it (they count, their text is not
    shown).
    prompt_logprobs: report log-probabilities of the prompt's tokens, with this many alternatives; None
    reports none. tenant: on whose behalf, for schedulers that are fair. priority: the higher, the sooner, for
    schedulers that ask. model: which of those that the engine serves; "" is the one it was opened with.
    encoded: the leading tokens of the prompt that an encoder reads, all of them in one step; what follows is
    the decoder's, a token or more. constraint: what each output has to be; None: anything.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    n: int = 1
    prompt_logprobs: int | None = None
    tenant: str = ""
    priority: int = 0
    model: str = ""
    encoded: int = 0
    constraint: Constraint | None = None
    id: str = ""


class Sink(Protocol):
    """Who receives a sequence's tokens; called on the kernel's thread."""

    def prompt(self, seq: Sequence, picks: Seq[Pick]) -> None:
        """Log-probabilities of the next tokens of the prompt, in order, if they were asked for."""
        ...

    def tokens(self, seq: Sequence, picks: Seq[Pick]) -> int | None:
        """New tokens, in order. To stop early, return how many of them stand (a stop string was found)."""
        ...

    def finish(self, seq: Sequence, reason: FinishReason, error: Exception | None) -> None:
        """The last call for this sequence."""
        ...


class Lender(Protocol):
    """Who holds the KV of a sequence that goes on elsewhere, until it has been pulled."""

    @property
    def pool(self) -> Any:
        """What the other's runner copies from."""
        ...

    def lent(self, seq: Sequence) -> Seq[int]:
        """The blocks of its KV, in order."""
        ...

    def give_up(self, seq: Sequence) -> None:
        """It is not needed here any more."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable state of one continuation. The engine writes it; schedulers and proposers only read.

    tokens: prompt, then output. ahead: tokens behind them that steps in flight are choosing. computed:
    leading tokens whose KV is there, or will be when the steps in flight have ended. busy: steps in flight
    and copies that it has to wait for; flying: steps in flight that it need not wait for.
    started_s, first_token_s, finished_s: when first scheduled, when the first token came, when it ended; None
    until then.
    source: who holds the computed tokens' KV, if they are still to be pulled from another engine.
    prompt_told: prompt tokens whose log-probabilities have been reported.
    cached: prompt tokens found in the prefix cache. drafted, accepted: draft rows run, and kept.
    acceptance: how its guesses have held lately, None before any.
    siblings: continuations of the same prompt that wait until this one has put it into the prefix cache.
    matcher: which tokens its constraint allows; None where there is none, or nothing real is generated.
    """

    id: int
    request: Request
    sampling: Sampling
    sink: Sink | None
    arrived_s: float
    tokens: list[int]
    prompt_len: int
    computed: int = 0
    ahead: int = 0
    busy: int = 0
    flying: int = 0
    started_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    finished: FinishReason | None = None
    num_preempted: int = 0
    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    acceptance: Acceptance | None = None
    siblings: list[Sequence] = field(default_factory=list)
    source: Lender | None = None
    prompt_told: int = 0
    matcher: Matcher | None = None

    @property
    def known(self) -> int:
        """Tokens of the text, those included that are being chosen."""
        return len(self.tokens) + self.ahead

    @property
    def left(self) -> int:
        """Tokens to run before the next one can be chosen."""
        return len(self.tokens) + self.ahead - self.computed

    @property
    def num_output(self) -> int:
        return len(self.tokens) + self.ahead - self.prompt_len

    @property
    def decoding(self) -> bool:
        known = len(self.tokens) + self.ahead
        return known - self.computed == 1 and known > self.prompt_len

    @property
    def output_left(self) -> int:
        """Output tokens until max_tokens."""
        return self.request.max_tokens - len(self.tokens) - self.ahead + self.prompt_len

    def __repr__(self) -> str:
        return f"<Sequence {self.id} {self.computed}/{self.known}>"


def begin(request: Request, sink: Sink | None, ids: Iterator[int], now_s: float) -> list[Sequence]:
    """The sequences of a request, one per continuation, seeds counting up from the request's."""
    return [
        Sequence(
            next(ids),
            request,
            replace(request.sampling, seed=request.sampling.seed + i) if i else request.sampling,
            sink,
            now_s,
            [*request.prompt],
            len(request.prompt),
        )
        for i in range(request.n)
    ]


def check_request(request: Request, limits: Limits, kv_tokens: int, num_waiting: int) -> None:
    """Raise what is wrong with a request before it is queued.

    kv_tokens: tokens that the whole KV cache holds. Raises RangeError for impossible values, CapacityError
    for a request that could never finish, BusyError when the queue is full.
    """
    if not request.prompt:
        raise RangeError("the prompt is empty", expected="at least one token", fix="send some text")
    for name, value in (("max_tokens", request.max_tokens), ("n", request.n)):
        if value < 1:
            raise RangeError(f"{name} is {value}", expected="at least 1", fix=f"raise {name}")
    if not 0 <= request.encoded < len(request.prompt):
        raise RangeError(
            f"an encoder is to read {request.encoded} tokens of a prompt of {len(request.prompt)}",
            expected="fewer than there are: the decoder begins with the rest",
            fix="end the prompt with the token that outputs begin with",
        )
    if request.encoded and request.prompt_logprobs is not None:
        raise RangeError(
            "log-probabilities are asked for of a prompt that an encoder reads",
            expected="those of the output: an encoder predicts nothing",
            fix="leave prompt_logprobs out",
        )
    asked = len(request.prompt) + request.max_tokens
    if asked > min(limits.max_len, kv_tokens):
        raise CapacityError(
            f"a prompt of {len(request.prompt)} tokens with max_tokens {request.max_tokens} makes {asked}",
            expected=f"at most {min(limits.max_len, kv_tokens)} (context {limits.max_len}, KV {kv_tokens})",
            fix="shorten the prompt or lower max_tokens",
        )
    if request.model and limits.models is not None and request.model not in limits.models:
        raise RangeError(
            f"no model is called {request.model!r}",
            expected=" or ".join(["none named", *map(repr, limits.models)]),
            fix="name one of these, or none",
        )
    if request.n > limits.max_waiting:
        raise CapacityError(
            f"{request.n} continuations do not fit into the queue",
            expected=f"at most {limits.max_waiting}",
            fix="lower n",
        )
    if num_waiting + request.n > limits.max_waiting:
        raise BusyError(
            f"{num_waiting} sequences are waiting",
            expected=f"at most {limits.max_waiting}",
            fix="send it again later",
        )
