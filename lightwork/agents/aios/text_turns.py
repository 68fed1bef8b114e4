"""Turns at a model that is not ours: whose turn is over is cancelled, and asked again with its text so far.

All that a remote API allows. What was computed is computed again, and as the text is cut into tokens anew the
rest may differ; in the serving engine `ContextSwitch` does neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lightwork.agents.aios.syscall import Syscall
from lightwork.agents.chat_model import ChatModel, ChatRequest, Reply, Usage
from lightwork.decode.sampling import Pick
from lightwork.runtime.queue import Queue
from lightwork.runtime.queue_policies import Turn


async def in_turns(
    call: Syscall,
    queue: Queue,
    priority: int,
    model: ChatModel,
    request: ChatRequest,
    push: Callable[[str], object],
) -> Reply:
    """The whole reply; its pieces are pushed as they come. A piece counts as a token."""
    now, turn = queue.kernel.now, queue.turn(priority)
    said, used = "", Usage()
    picks: tuple[Pick, ...] = ()
    await queue.take(turn)
    try:
        while True:
            call.start(now())
            reply, ended = await _one_turn(queue, turn, model, _rest(request, said, used), push)
            said, picks = said + reply.text, picks + reply.picks
            if len(call.starts_s) > 1:
                call.recomputed += reply.usage.prompt - reply.usage.cached
            used = used + replace(reply.usage, completion=reply.usage.completion or turn.tokens)
            if ended or reply.reason != "length" or used.completion >= request.max_tokens:
                return replace(reply, text=said, usage=used, picks=picks)
            call.suspend(now())
            await queue.again(turn)
    finally:
        if turn in queue.running:
            queue.leave(turn)


def _rest(request: ChatRequest, said: str, used: Usage) -> ChatRequest:
    """What is still wanted."""
    return replace(request, prefix=request.prefix + said, max_tokens=request.max_tokens - used.completion)


async def _one_turn(
    queue: Queue, turn: Turn, model: ChatModel, request: ChatRequest, push: Callable[[str], object]
) -> tuple[Reply, bool]:
    """What came in a turn, and whether the model had come to its end."""
    stream, read, ended = model.stream(request), 0, True
    try:
        async for piece in stream:
            read += len(piece)
            push(piece)
            turn.tokens += 1
            if queue.over(turn):
                ended = False
                break
    finally:
        reply = stream.cancel()
    push(reply.text[read:])
    return reply, ended
