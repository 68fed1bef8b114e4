"""Replies recorded once and said again: a run with a model that costs money, or is gone, repeated exactly.

    recording = Recording(model, kernel)               # a model; programs notice nothing
    ...
    recording.save(Path("run.jsonl"))

    model = ReplayModel(kernel, read_transcript(Path("run.jsonl")))

A transcript is JSON lines, one exchange each: what was asked, the pieces with their times, the reply.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightwork.agents.chat_model import ChatModel, ChatRequest, ChatStream, Message, Reply, ToolCall, Usage
from lightwork.decode.sampling import Pick
from lightwork.errors import UsageError
from lightwork.home import keep
from lightwork.runtime.kernel import Kernel


@dataclass(frozen=True, slots=True)
class Exchange:
    """What was asked, and what came. pieces: (seconds after it was asked, text). end_s: when it was whole."""

    request: ChatRequest
    reply: Reply
    pieces: tuple[tuple[float, str], ...]
    end_s: float


class Recording:
    """A model in front of another one, that keeps what is said. exchanges: those that are whole, in order of
    their ends. Replies that fail or are cancelled are not kept."""

    def __init__(self, model: ChatModel, kernel: Kernel) -> None:
        self.name = model.name
        self.exchanges: list[Exchange] = []
        self._model, self._kernel = model, kernel

    def stream(self, request: ChatRequest) -> ChatStream:
        shown, inner = ChatStream(self._kernel), self._model.stream(request)
        task = self._kernel.spawn(self._follow(request, inner, shown), name=f"a recording of {self.name}")

        def stop() -> None:
            task.cancel()
            shown.end(inner.cancel())

        shown.stop = stop
        return shown

    def save(self, file: Path) -> None:
        """Write the transcript. Raises OSError."""
        lines = [json.dumps(asdict(exchange), ensure_ascii=False) + "\n" for exchange in self.exchanges]
        keep(file, lambda place: place.write_text("".join(lines), encoding="utf-8"))

    async def _follow(self, request: ChatRequest, inner: ChatStream, shown: ChatStream) -> None:
        begin_s, pieces = self._kernel.now(), list[tuple[float, str]]()
        try:
            async for piece in inner:
                pieces.append((self._kernel.now() - begin_s, piece))
                shown.push(piece)
            reply = await inner.reply()
        except Exception as error:
            shown.fail(error)
            return
        self.exchanges.append(Exchange(request, reply, tuple(pieces), self._kernel.now() - begin_s))
        shown.end(reply)


class ReplayModel:
    """Says what a transcript says. What is asked must have been asked then, as often and, where it was asked
    several times, in that order. timed: each piece as late as it came, on this kernel's clock; else at once.
    """

    def __init__(
        self, kernel: Kernel, exchanges: Sequence[Exchange], *, name: str = "replay", timed: bool = True
    ) -> None:
        self.name = name
        self._kernel, self._timed = kernel, timed
        self._left: dict[str, deque[Exchange]] = {}
        for exchange in exchanges:
            self._left.setdefault(_key(exchange.request), deque()).append(exchange)

    @property
    def num_left(self) -> int:
        """Exchanges that nobody has asked for yet."""
        return sum(map(len, self._left.values()))

    def stream(self, request: ChatRequest) -> ChatStream:
        stream, found = ChatStream(self._kernel), self._left.get(_key(request))
        if not found:
            last = request.messages[-1].content if request.messages else ""
            stream.fail(
                UsageError(
                    f"the transcript has no {'further ' * (found is not None)}reply to {last[-80:]!r}",
                    expected="the requests that were recorded, with the same settings",
                    fix="record it again",
                )
            )
            return stream
        task = self._kernel.spawn(self._say(found.popleft(), stream), name=f"a turn of {self.name}")
        stream.stop = task.cancel
        return stream

    async def _say(self, exchange: Exchange, stream: ChatStream) -> None:
        begin_s = self._kernel.now()
        for at_s, piece in exchange.pieces:
            await self._until(begin_s + at_s)
            stream.push(piece)
        await self._until(begin_s + exchange.end_s)
        stream.end(exchange.reply)

    async def _until(self, when_s: float) -> None:
        wait_s = when_s - self._kernel.now()
        if self._timed and wait_s > 0:
            await self._kernel.sleep(wait_s)


def read_transcript(file: Path) -> list[Exchange]:
    """What `Recording.save` wrote. Raises UsageError for a line that is none of it."""
    exchanges = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            exchanges.append(_exchange(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"line {number} of {file} is no exchange: {error!r}",
                expected="what Recording.save writes",
                fix="record it again",
            ) from error
    return exchanges


def _key(request: ChatRequest) -> str:
    return json.dumps(asdict(request), sort_keys=True, ensure_ascii=False, default=str)


def _exchange(told: Mapping[str, Any]) -> Exchange:
    asked, said = dict(told["request"]), dict(told["reply"])
    asked["messages"] = tuple(_message(message) for message in asked["messages"])
    asked |= {name: tuple(asked[name]) for name in ("tools", "stop")}
    said["calls"] = tuple(ToolCall(**call) for call in said["calls"])
    said["usage"] = Usage(**said["usage"])
    said["picks"] = tuple(Pick(token, p, tuple(map(tuple, top))) for token, p, top in said["picks"])
    pieces = tuple((float(at_s), str(piece)) for at_s, piece in told["pieces"])
    return Exchange(ChatRequest(**asked), Reply(**said), pieces, float(told["end_s"]))


def _message(told: Mapping[str, Any]) -> Message:
    return Message(**{**told, "calls": tuple(ToolCall(**call) for call in told["calls"])})
