"""A policy as a model of the serving engine: logits that follow what a policy says.

Tokenizer, scheduler, prefix cache, preemption, streaming, stop strings, log-probabilities, sampling and the
OpenAI-compatible server do their real work, and what must come out is known in closed form: the greedy text
is the policy's, log-probabilities are the logarithms of its probabilities, sampled texts have its
frequencies.

    engine, model, settings = open_teacher(policy, plan, kernel)     # as `open_engine` gives them
    with BackgroundServer(load(plan, opener=partial(open_teacher, policy))) as url: ...    # over HTTP

The keys and values of this model are the tokens themselves, in the slots where a real model's would be, and
it reads a text from there alone. So a block that is shared, moved or freed wrongly gives a wrong text.

N scored rows, V vocabulary size
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightwork.agents.chat_model import ChatRequest
from lightwork.agents.conversation_text import BEGIN, read_conversation
from lightwork.agents.policies import Policy, choices
from lightwork.decode.constraints import grammars
from lightwork.errors import InvariantError, SpecError
from lightwork.kernels.rows import Rows
from lightwork.models import read_shape, resolve
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.progress import Progress
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.plan import BLOCK_SIZE, Plan, Setting, make_engine, make_kv, tier_blocks
from lightwork.serve.routers import Router

VOICE = "tiny:llama"
"""Whose tokenizer and chat template a teacher has."""
MAX_LEN, LONGEST = 8192, 1 << 17
"""Tokens of context unless a plan says more, and the most that it may."""
TOKEN_BYTES = 4
KEPT = 8192
"""Places in texts whose continuations are remembered."""
KINDS = ("scheduler", "proposer", "verifier", "layout", "tier", "router")


class TokenPool:
    """What stands for keys and values: the token of every slot, -1 where there is none."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.tokens = np.full(num_blocks * block_size, -1, np.int32)

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes

    def copy(self, src: Sequence[int], dst: Sequence[int]) -> None:
        self.tokens[list(dst)] = self.tokens[list(src)]

    def pull(self, other: TokenPool, runs: Sequence[tuple[int, int, int]]) -> None:
        """runs: (its block, this one's block, how many from there on)."""
        size = self.block_size
        for src, dst, num in runs:
            self.tokens[dst * size : (dst + num) * size] = other.tokens[src * size : (src + num) * size]

    def discard(self, blocks: range) -> None:
        self.tokens[blocks.start * self.block_size : blocks.stop * self.block_size] = -1


class _Path(NamedTuple):
    """One way on from a place in a reply: its tokens, of which so many have been said; the text then; and how
    probable it was where the ways parted."""

    ids: tuple[int, ...]
    at: int
    said: str
    weight: float


_Place = tuple[ChatRequest, list[_Path]]


class TeacherLM:
    """A model for `LocalRunner`, and what servers ask of one (`AnyModel`).

    It answers conversations, in the template of tiny:llama; a text that is none, or whose reply is not what
    the policy says, it ends. An error of the policy ends the requests of its step.
    """

    shared_keys: Sequence[int] = ()
    variants: Mapping[str, str] = {}
    nbytes = 0

    def __init__(self, policy: Policy, *, max_len: int = MAX_LEN) -> None:
        self.tokenizer = Tokenizer(resolve(VOICE))
        self.spec = replace(read_shape(VOICE), max_len=max_len)
        self.generation: dict[str, Any] = {"do_sample": False}
        self._policy = policy
        self._places: OrderedDict[bytes, _Place] = OrderedDict()
        self._end = min(self.tokenizer.eos_ids)
        [self._begin] = self.tokenizer.encode(BEGIN)

    # -- what a runner and a server need

    def new_kv(self, num_blocks: int, block_size: int, *, shared: int | None = None) -> TokenPool:
        return TokenPool(num_blocks, block_size)

    def new_host_kv(self, num_blocks: int, block_size: int) -> TokenPool:
        return TokenPool(num_blocks, block_size)

    def warm_up(self) -> None:
        """Nothing gets faster."""

    def close(self) -> None:
        """Nothing is held."""

    def logits(self, rows: Rows, kv: TokenPool) -> NDArray[np.float32]:
        """float32 [N, V]: logarithms of the policy's probabilities. Raises InvariantError for a row that sees
        a slot without a token."""
        kv.tokens[rows.slots] = rows.tokens
        logits_NV = np.full((len(rows.scored), self.spec.vocab_size), -np.inf, np.float32)
        for i, row in enumerate(rows.scored):
            for token, logprob in self._next(_seen(rows, int(row), kv)).items():
                logits_NV[i, token] = logprob
        return logits_NV

    # -- what comes next

    def _next(self, tokens: NDArray[np.int32]) -> dict[int, float]:
        """The logarithm of each token's probability, for those that may come next."""
        _, paths = self._place(tokens)
        weights: dict[int, float] = {}
        for path in paths:
            token = path.ids[path.at]
            weights[token] = weights.get(token, 0.0) + path.weight
        total = sum(weights.values())
        return {token: float(np.log(weight / total)) for token, weight in weights.items()}

    def _place(self, tokens: NDArray[np.int32]) -> _Place:
        """What is answered, and the ways on from behind these tokens, one at least: a token on from the place
        before, or by the text, where somebody else has written in other tokens than the policy would."""
        key = _key(tokens)
        place = self._places.get(key)
        if place is None:
            ids = tokens.tolist()
            before = self._places.get(_key(tokens[:-1]))
            stepped = before and (self._step(before, ids[-1]) or self._by_text(ids))
            place = self._places[key] = stepped or self._walked(ids)
        self._places.move_to_end(key)
        while len(self._places) > KEPT:
            self._places.popitem(last=False)
        return place

    def _walked(self, ids: list[int]) -> _Place:
        """The same without knowing a place before."""
        first = len(ids) - ids[::-1].index(self._begin) if self._begin in ids else len(ids)
        place = self._by_text(ids[:first])
        for num in range(first, len(ids)):
            place = self._step(place, ids[num]) or self._by_text(ids[: num + 1])
        return place

    def _step(self, place: _Place, token: int) -> _Place | None:
        """One token on; None where no path goes there."""
        request, paths = place
        taken = [path._replace(at=path.at + 1) for path in paths if path.ids[path.at] == token]
        on: list[_Path] = []
        for path in taken:
            if path.at < len(path.ids):
                on.append(path)
            elif token != self._end:
                on += self._ways(request, path.said, "", path.weight)
        return (request, on) if on else None

    def _by_text(self, ids: list[int]) -> _Place:
        request, said = read_conversation(self.tokenizer.decode(ids))
        if request is None:
            return ChatRequest(()), [self._ended(1.0)]
        return request, [*self._ways(request, "", said, 1.0)] or [self._ended(1.0)]

    def _ways(self, request: ChatRequest, done: str, rest: str, weight: float) -> Iterator[_Path]:
        """The ways on behind done + rest, where `done` ends with a decision of the policy."""
        found = choices(self._policy, request, done)
        if not found and not rest:
            yield self._ended(weight)
        total = sum(choice.probability for choice in found)
        for text, probability in found:
            share = weight * probability / total
            if rest.startswith(text):
                yield from self._ways(request, done + text, rest[len(text) :], share)
            elif text.startswith(rest):
                yield _Path(tuple(self.tokenizer.encode(text[len(rest) :])), 0, done + text, share)

    def _ended(self, weight: float) -> _Path:
        return _Path((self._end,), 0, "", weight)


def _seen(rows: Rows, row: int, kv: TokenPool) -> NDArray[np.int32]:
    """The tokens up to a row, as it sees them."""
    seq, index = int(rows.seqs[row]), int(rows.index[row])
    known = min(index + 1, int(rows.known[seq]))
    at = np.arange(known)
    if index >= rows.known[seq]:
        bits = int(rows.ancestors[row])
        nodes = [known + bit for bit in range(bits.bit_length()) if bits >> bit & 1]
        at = np.concatenate([at, np.array(nodes, np.int64)])
    slots = rows.tables[seq, at // kv.block_size] * kv.block_size + at % kv.block_size
    tokens: NDArray[np.int32] = kv.tokens[slots]
    if (tokens < 0).any():
        raise InvariantError(f"row {index} sees slots {slots[tokens < 0][:8].tolist()}, where no token is")
    return tokens


def _key(tokens: NDArray[np.int32]) -> bytes:
    return blake2b(tokens.tobytes(), digest_size=16).digest()


def open_teacher(
    policy: Policy, plan: Plan, kernel: Kernel, progress: Progress | None = None
) -> tuple[Engine | Fleet, TeacherLM, list[Setting]]:
    """An engine whose model is a TeacherLM, or the engines behind a router, all in this process. plan: its
    techniques and limits; its model and place do not matter. kv_bytes: of 4 bytes a token. Works on a virtual
    clock, too, where computing takes no time.

    Raises SpecError for techniques that need a real model.
    """
    chosen = plan.techniques()
    wrong = next((chosen[kind] for kind in chosen if kind not in KINDS), None)
    if wrong is not None or (plan.tp or 1) * (plan.pp or 1) > 1:
        raise SpecError(
            f"{wrong or 'a model cut over processes'!r} needs weights, and a teacher has none",
            expected=f"a {' or '.join(KINDS)}",
            fix="leave it out",
        )
    max_len = plan.max_len or MAX_LEN
    if max_len > LONGEST:
        raise SpecError(f"max_len is {max_len}", expected=f"at most {LONGEST}", fix="lower max_len")
    model = TeacherLM(policy, max_len=max_len)
    router: Router[Any] | None = chosen.get("router")
    names = ["engine"] if router is None else [f"engine {i}" for i in range(len(router.seats()))]
    ids = count()
    engines = [_engine(model, plan, kernel, name=name, ids=ids) for name in names]
    settings = [
        Setting("max_len", str(max_len), "as asked" if plan.max_len else "a teacher's default"),
        Setting("kv_blocks", str(engines[0].kv.total), f"{BLOCK_SIZE * TOKEN_BYTES} bytes each"),
    ]
    return Fleet(engines, router) if router is not None else engines[0], model, settings


def _engine(model: TeacherLM, plan: Plan, kernel: Kernel, **parts: Any) -> Engine:
    max_len, vocab_size = model.spec.max_len, model.spec.vocab_size
    block_bytes = BLOCK_SIZE * TOKEN_BYTES
    wanted = plan.max_seqs * -(-max_len // BLOCK_SIZE)
    blocks = wanted if plan.kv_bytes is None else plan.kv_bytes // block_bytes
    kv = make_kv(plan, blocks, BLOCK_SIZE, tier_blocks(plan, block_bytes))
    runner = LocalRunner(kernel, model, kv, ahead=plan.depth > 1)
    parts["constrain"] = grammars(model.tokenizer, vocab_size).matcher
    return make_engine(plan, kernel, kv, runner, max_len, vocab_size, (), **parts)
