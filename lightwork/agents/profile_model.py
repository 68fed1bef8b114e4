"""A model that is only a latency and a price: what a program takes in time and money, without computing.

    gpt = Profile(ttft_s=1.15, tokens_per_s=55, prompt_price=0.5, completion_price=1.5)
    model = ProfileModel(kernel, gpt, policy)
    ...
    model.usage, model.cost, model.turns

Works on any clock; on a virtual one a thousand turns take milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from math import ceil, exp, inf

from lightwork.agents.chat_model import ChatRequest, ChatStream, Reason, Usage
from lightwork.agents.policies import Policy, play
from lightwork.agents.replies import ReplyWriter, message_dict
from lightwork.errors import RangeError
from lightwork.runtime.effects import Acquire
from lightwork.runtime.futures import Task
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.resources import Store

CHARS_PER_TOKEN = 4


def four_chars(text: str) -> int:
    """Tokens of a text if one is four characters, as it is in English."""
    return -(-len(text) // CHARS_PER_TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one turn takes.

    ttft_s: until the first token. tokens_per_s: from then on. prompt_s: per prompt token, beside ttft_s.
    concurrency: replies at once, others wait in line; 0: any number. jitter: standard deviation of the
    logarithm of how much slower a turn is; 0: none. overhead_s: of the framework, before each turn. poll_s: a
    reply's end is noticed at the next multiple of it after the turn began; 0: at once. prompt_price,
    completion_price: money for a million tokens. piece_tokens: tokens that come together; 0: the whole reply
    at its end. Raises RangeError.
    """

    ttft_s: float = 0.0
    tokens_per_s: float = inf
    prompt_s: float = 0.0
    concurrency: int = 0
    jitter: float = 0.0
    overhead_s: float = 0.0
    poll_s: float = 0.0
    prompt_price: float = 0.0
    completion_price: float = 0.0
    piece_tokens: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0 or (field.name == "tokens_per_s" and value == 0):
                raise RangeError(f"{field.name} is {value}", expected="a number of at least 0")


class ProfileModel:
    """usage, cost, turns: of all replies so far; a cancelled one counts with what had come. count: tokens of
    a text.

    Calls, stop strings, max_tokens and prefix mean what they mean to a model that computes. Jitter comes from
    the kernel's random stream of this name, so one seed gives one run.
    """

    def __init__(
        self,
        kernel: Kernel,
        profile: Profile,
        policy: Policy,
        *,
        name: str = "profile",
        count: Callable[[str], int] = four_chars,
    ) -> None:
        self.name = name
        self.usage = Usage()
        self.cost = 0.0
        self.turns = 0
        self._kernel, self._profile, self._policy, self._count = kernel, profile, policy, count
        self._slots = Store(name, profile.concurrency) if profile.concurrency else None

    def stream(self, request: ChatRequest) -> ChatStream:
        stream = ChatStream(self._kernel)
        turn = _Turn(request, stream, self._num_prompt(request))
        task = self._kernel.spawn(self._answer(turn), name=f"a turn of {self.name}")
        stream.stop = lambda: self._stop(task, turn)
        return stream

    async def _answer(self, turn: _Turn) -> None:
        try:
            if self._slots is None:
                await self._say(turn)
                return
            await Acquire(self._slots, 1)
            try:
                await self._say(turn)
            finally:  # without awaiting: it may be closed here, with its kernel
                self._slots.release(self._kernel, 1)
        except Exception as error:
            turn.stream.fail(error)

    async def _say(self, turn: _Turn) -> None:
        kernel, profile, begin_s = self._kernel, self._profile, self._kernel.now()
        slower = exp(profile.jitter * kernel.rng(self.name).standard_normal()) if profile.jitter else 1.0
        text, reason = _until_end(play(self._policy, turn.request), turn.request, self._count)
        await kernel.sleep(
            profile.overhead_s + (profile.ttft_s + profile.prompt_s * turn.num_prompt) * slower
        )
        for piece, num_tokens in self._pieces(text):
            await kernel.sleep(num_tokens / profile.tokens_per_s * slower)
            turn.push(piece, num_tokens)
        if profile.poll_s:
            polls = ceil((kernel.now() - begin_s) / profile.poll_s - 1e-9)
            await kernel.sleep(begin_s + polls * profile.poll_s - kernel.now())
        self._end(turn, reason)

    def _pieces(self, text: str) -> Iterator[tuple[str, int]]:
        """The reply cut into pieces of so many tokens, each an equal share of the characters."""
        total, size = self._count(text), self._profile.piece_tokens or inf
        done = at = 0
        while done < total:
            num = int(min(size, total - done))
            done += num
            end = len(text) * done // total
            yield text[at:end], num
            at = end

    def _stop(self, task: Task, turn: _Turn) -> None:
        task.cancel()
        self._end(turn, "length")

    def _end(self, turn: _Turn, reason: Reason) -> None:
        usage = Usage(turn.num_prompt, turn.num_said)
        self.turns += 1
        self.usage = self.usage + usage
        prices = self._profile.prompt_price, self._profile.completion_price
        self.cost += (usage.prompt * prices[0] + usage.completion * prices[1]) / 1e6
        turn.writer.end(reason, usage)

    def _num_prompt(self, request: ChatRequest) -> int:
        """Tokens of the conversation, of the tools that it offers, and of how its reply begins."""
        texts = [str(message_dict(m)["tool_calls"]) for m in request.messages if m.calls]
        texts += [message.content for message in request.messages]
        texts += [str(tool) for tool in request.tools]
        return sum(map(self._count, [*texts, request.prefix]))


class _Turn:
    """One reply as it comes."""

    def __init__(self, request: ChatRequest, stream: ChatStream, num_prompt: int) -> None:
        self.request, self.stream, self.num_prompt = request, stream, num_prompt
        self.writer = ReplyWriter(request, stream)
        self.num_said = 0

    def push(self, piece: str, num_tokens: int) -> None:
        self.num_said += num_tokens
        self.writer.push(piece)


def _until_end(text: str, request: ChatRequest, count: Callable[[str], int]) -> tuple[str, Reason]:
    """The text up to a stop string or max_tokens, and why it ends there."""
    reason: Reason = "stop"
    total = count(text)
    if total > request.max_tokens:
        text, reason = text[: len(text) * request.max_tokens // total], "length"
    found = [at for stop in request.stop if stop and (at := text.find(stop)) >= 0]
    return (text[: min(found)], "stop") if found else (text, reason)
