"""What holds for every model: one program has the same conversation with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from known_replies import WEATHER, answer, asked, echo, uses_a_tool

from lightwork.agents.chat_model import ChatModel, ChatRequest, Message, Reply
from lightwork.agents.engine_model import open_model
from lightwork.agents.functions import tool
from lightwork.agents.http_model import HttpModel
from lightwork.agents.profile_model import Profile, ProfileModel
from lightwork.agents.replay_model import Recording, ReplayModel
from lightwork.agents.teacher import open_teacher
from lightwork.agents.tool import Toolbox
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.plan import Plan

PLAN = Plan(max_len=2048, max_seqs=8)
SIM = Plan(model="shape:llama-3-8b", on="sim:h100")
Opened = tuple[Kernel, ChatModel]


def both(request: ChatRequest, said: str) -> Any:
    return uses_a_tool(request, said) if request.tools else echo(request, said)


@contextmanager
def teacher() -> Iterator[Opened]:
    kernel = Kernel(WallClock())
    model = open_model(PLAN, kernel, both)
    yield kernel, model
    model.close()


@contextmanager
def simulated() -> Iterator[Opened]:
    kernel = Kernel()
    yield kernel, open_model(SIM, kernel, both)


@contextmanager
def profile() -> Iterator[Opened]:
    kernel = Kernel()
    yield kernel, ProfileModel(kernel, Profile(ttft_s=1.0, tokens_per_s=50, concurrency=2), both)


@contextmanager
def recording() -> Iterator[Opened]:
    with profile() as (kernel, model):
        yield kernel, Recording(model, kernel)


@contextmanager
def replay() -> Iterator[Opened]:
    with recording() as (kernel, model):
        assert isinstance(model, Recording)
        kernel.run(talk(kernel, model))
        for request in ASKED:
            kernel.run(model.stream(request).reply())
        again = Kernel()
        yield again, ReplayModel(again, [*model.exchanges, *model.exchanges])


@contextmanager
def over_http() -> Iterator[Opened]:
    kernel = Kernel(WallClock())
    loaded = load(PLAN, name="teacher", opener=partial(open_teacher, both))
    with BackgroundServer(loaded) as url:
        model = HttpModel(kernel, f"{url}/v1", "teacher")
        try:
            yield kernel, model
        finally:
            model.close()


EVERY = [teacher, simulated, profile, recording, replay, over_http]
WHOLE = answer(asked("red"))
ASKED = [asked("red"), asked("red", stop=("naïve", "“")), asked("red", prefix=WHOLE[:20])]
SAID = [WHOLE, WHOLE[: WHOLE.index("naïve")], WHOLE[20:]]


@tool
async def weather(city: str) -> str:
    """What the weather is."""
    return f"rain in {city}"


async def talk(kernel: Kernel, model: ChatModel) -> list[Message]:
    """Ask for the weather in two cities, carrying out the calls; the whole conversation."""
    box = Toolbox.of(kernel, [weather])
    messages: list[Message] = []
    for city in ("Oslo", "Rome"):
        messages.append(Message("user", city))
        while True:
            reply = await model.stream(ChatRequest(tuple(messages), (WEATHER,))).reply()
            messages.append(reply.message())
            if not reply.calls:
                break
            for call in reply.calls:
                seen = await box.call(call)
                messages.append(Message("tool", seen.text, call_id=call.id))
    return messages


EXPECTED = [
    ("user", "Oslo", ()),
    ("assistant", "Let me look.", ("call_1",)),
    ("tool", "rain in Oslo", ()),
    ("assistant", "It is rain in Oslo.", ()),
    ("user", "Rome", ()),
    ("assistant", "Let me look.", ("call_2",)),
    ("tool", "rain in Rome", ()),
    ("assistant", "It is rain in Rome.", ()),
]


@pytest.fixture(scope="module", params=EVERY, ids=lambda made: made.__name__)
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    made: Callable[[], Any] = request.param
    with made() as both_of_them:
        yield both_of_them


def test_a_conversation_with_tools_is_the_same(opened: Opened):
    messages = opened[0].run(talk(*opened))
    assert [(m.role, m.content, tuple(call.id for call in m.calls)) for m in messages] == EXPECTED


def test_stop_strings_and_prefixes_mean_the_same_and_pieces_are_the_text(opened: Opened):
    kernel, model = opened

    async def main(request: ChatRequest) -> tuple[str, Reply]:
        stream = model.stream(request)
        pieces = [piece async for piece in stream]
        assert len(pieces) > 1
        return "".join(pieces), await stream.reply()

    for request, said in zip(ASKED, SAID, strict=True):
        pieces, reply = kernel.run(main(request))
        assert pieces == reply.text == said
        assert reply.reason == "stop"
        assert reply.usage.completion > 0


def test_a_cancelled_reply_has_what_had_come_and_is_over(opened: Opened):
    kernel, model = opened

    async def main() -> tuple[str, Reply]:
        stream = model.stream(ASKED[0])
        async for piece in stream:
            return piece, stream.cancel()
        raise AssertionError

    piece, reply = kernel.run(main())
    assert reply.text.startswith(piece)
    assert WHOLE.startswith(reply.text)
    assert reply.reason == "length"
