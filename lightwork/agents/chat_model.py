"""What an agent program says to a model, and what comes back: the same for every place a model may be.

    stream = model.stream(ChatRequest((Message("user", "hello"),)))
    async for piece in stream: ...          # as it is written
    reply = await stream.reply()            # the whole

Programs await kernel futures only, so a conversation runs on a real clock and on a virtual one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lightwork.decode.sampling import Pick
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel

Role = Literal["system", "user", "assistant", "tool"]
Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's wish to call a tool. id: what the observation refers to. arguments: by parameter name. raw:
    what the model wrote for them, where that is no JSON object; they are empty then, and Toolbox refuses.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. calls: of an assistant. call_id: of a tool's answer, the call that it answers."""

    role: Role
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a model is asked. tools: their schemas as OpenAI writes them ({"name", "description",
    "parameters"}; with "strict": True arguments are held to that). stop: strings that end the reply and are
    not part of it. logprobs: how many alternatives of each token are wanted. prefix: how the reply begins;
    the model writes on from there, and its text is what follows. tenant, priority: on whose behalf and how
    soon, for schedulers that ask.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0
    logprobs: int = 0
    prefix: str = ""
    tenant: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply, or summed over several. cached: of prompt, found in the prefix cache."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt, self.completion + other.completion, self.cached + other.cached
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """calls: those of the prefix, too. reason: "tool_calls" where it ended with some. picks: its tokens,
    where the model tells them, with log-probabilities if they were asked for.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    reason: Reason = "stop"
    usage: Usage = field(default_factory=Usage)
    picks: tuple[Pick, ...] = ()

    def message(self) -> Message:
        return Message("assistant", self.text, self.calls)


class ChatModel(Protocol):
    """A model that programs talk to. name: as users know it."""

    name: str

    def stream(self, request: ChatRequest) -> ChatStream:
        """Ask. Errors come when the stream is read."""
        ...


@dataclass(slots=True, eq=False)
class ChatStream:
    """A reply as it comes. A model calls push, then end or fail, on the kernel's thread; one reader reads.

    stop: what `cancel` calls, once, to make the model stop; it may end the stream with more than its text.
    """

    kernel: Kernel
    stop: Callable[[], object] | None = None
    _pieces: deque[str] = field(default_factory=deque)
    _text: list[str] = field(default_factory=list)
    _bell: Future | None = None
    _whole: Future = field(init=False)

    def __post_init__(self) -> None:
        self._whole = self.kernel.future("a reply")

    def push(self, piece: str) -> None:
        """The next piece of text."""
        if piece and not self._whole.done:
            self._pieces.append(piece)
            self._text.append(piece)
            self._ring()

    def end(self, reply: Reply) -> None:
        if not self._whole.done:
            self._whole.set(reply)
            self._ring()

    def fail(self, error: BaseException) -> None:
        """The reader gets the pieces that came, then this error."""
        if not self._whole.done:
            self._whole.fail(error)
            self._ring()

    def when_done(self, fn: Callable[[], object]) -> None:
        """Call fn() once there is a reply, or an error."""
        self._whole.add_callback(lambda whole: fn())

    def cancel(self) -> Reply:
        """Nothing more is wanted: make the model stop. Returns what had come."""
        if not self._whole.done:
            if self.stop is not None:
                self.stop()
            self.end(Reply("".join(self._text), reason="length"))
        reply: Reply = self._whole.result()
        return reply

    async def reply(self) -> Reply:
        """The whole, once it is there. Raises what the model failed with."""
        reply: Reply = await self._whole
        return reply

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            while self._pieces:
                yield self._pieces.popleft()
            if self._whole.done:
                self._whole.result()
                return
            self._bell = self.kernel.future("the next piece of a reply")
            await self._bell

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.done:
            self._bell.set()
