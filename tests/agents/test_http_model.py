"""A model over HTTP: the replies of the same model in process, and servers that misbehave."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from known_replies import WEATHER, ask, asked, decides, uses_a_tool

from lightwork.agents.chat_model import ChatRequest, Message, Reply, ToolCall
from lightwork.agents.engine_model import open_model
from lightwork.agents.http_model import HttpModel, wait_s
from lightwork.agents.teacher import open_teacher
from lightwork.errors import BusyError, CapacityError, NotReadyError, RemoteError, SpecError, UsageError
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.plan import Plan

PLAN = Plan(max_len=1024, max_seqs=8)
KEY = "a-key"


def both(request: ChatRequest, said: str) -> Any:
    return uses_a_tool(request, said) if request.tools else decides(request, said)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    loaded = load(PLAN, name="teacher", opener=partial(open_teacher, both), api_key=KEY)
    with BackgroundServer(loaded) as address:
        yield f"{address}/v1"


@contextmanager
def connected(url: str, **settings: Any) -> Iterator[tuple[Kernel, HttpModel]]:
    kernel = Kernel(WallClock())
    model = HttpModel(kernel, url, "teacher", **{"api_key": KEY, **settings})
    try:
        yield kernel, model
    finally:
        model.close()


def known(replies: list[Reply]) -> list[Reply]:
    """Without what depends on who asked before."""
    return [replace(reply, usage=replace(reply.usage, cached=0)) for reply in replies]


CALLED = ToolCall("call_1", "weather", {"city": "Oslo"})
REQUESTS = [
    asked("?"),
    asked("?", temperature=1.0, seed=5),
    asked("?", stop=("b",)),
    asked("?", max_tokens=2),
    asked("?", prefix="ye"),
    asked("Oslo", tools=(WEATHER,)),
    ChatRequest(
        (
            Message("user", "Oslo"),
            Message("assistant", "", (CALLED,)),
            Message("tool", "rain", call_id="call_1"),
        ),
        (WEATHER,),
    ),
]


def test_replies_are_those_of_the_model_in_process(url: str):
    with connected(url) as (kernel, model):
        over_http = ask(kernel, model, *REQUESTS)
    near = Kernel()
    in_process = ask(near, open_model(PLAN, near, both), *REQUESTS)
    assert known(over_http) == [replace(reply, picks=()) for reply in known(in_process)]


def test_log_probabilities_are_those_of_the_model_in_process(url: str):
    request = asked("?", logprobs=3, temperature=1.0, seed=2)
    with connected(url) as (kernel, model):
        over_http = ask(kernel, model, request)
    near = Kernel()
    ours, theirs = ask(near, open_model(PLAN, near, both), request)[0].picks, over_http[0].picks
    shown = [pick for pick in ours if pick.token not in open_model(PLAN, near, both).tokenizer.eos_ids]
    assert [pick.token for pick in theirs][: len(shown)] == [pick.token for pick in shown]
    assert [pick.logprob for pick in theirs][: len(shown)] == pytest.approx([p.logprob for p in shown])
    assert [dict(pick.top).keys() for pick in theirs][: len(shown)] == [dict(p.top).keys() for p in shown]


def test_the_built_in_model_says_the_same_over_http():
    plan = Plan(max_len=256)
    requests = [asked("What is next?", max_tokens=20), asked("a b c", max_tokens=20, temperature=1.3, seed=3)]
    near = Kernel(WallClock())
    model = open_model(plan, near)
    in_process = ask(near, model, *requests)
    model.close()
    with BackgroundServer(load(plan, name="teacher")) as address, connected(f"{address}/v1") as (kernel, far):
        over_http = ask(kernel, far, *requests)
    assert [reply.text for reply in over_http] == [reply.text for reply in in_process]


def test_pieces_are_streamed(url: str):
    with connected(url) as (kernel, model):

        async def main() -> list[str]:
            return [piece async for piece in model.stream(asked("?"))]

        pieces = kernel.run(main())
    assert len(pieces) > 1
    assert "".join(pieces) == "yes but"


def test_what_is_refused_has_its_error(url: str):
    with connected(url) as (kernel, model):
        with pytest.raises(CapacityError, match="server says"):
            ask(kernel, model, asked("x" * 5000))
        with pytest.raises(UsageError, match="temperature"):
            ask(kernel, model, asked("?", temperature=-1.0))
    with connected(url, api_key="wrong") as (kernel, model), pytest.raises(UsageError, match="401"):
        ask(kernel, model, asked("?"))


def counts(request: ChatRequest, said: str) -> str:
    """Longer than anybody waits, or short."""
    return "so " * (3000 if request.messages[0].content == "long" else 3)


def test_the_more_urgent_is_served_first_where_there_are_priorities(url: str):
    plan = Plan(max_len=4096, use=("ContextSwitch(policy=Priority())",))
    loaded = load(plan, name="teacher", opener=partial(open_teacher, counts))
    with BackgroundServer(loaded) as address, connected(f"{address}/v1") as (kernel, model):

        async def main() -> tuple[str, Reply]:
            running = model.stream(asked("long", max_tokens=3500))
            async for _ in running:
                break
            urgent = await model.stream(asked("short", priority=2)).reply()
            return urgent.text, running.cancel()

        text, given_up = kernel.run(main())
    assert text.strip() == "so so so"
    assert 0 < len(given_up.text) < len("so " * 3000)
    with (
        connected(url) as (kernel, model),
        pytest.raises(UsageError, match="priority is -2, and this server has none"),
    ):
        ask(kernel, model, asked("?", priority=2))


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str):
    with pytest.raises(UsageError, match="cannot be sent") as refused, connected("nowhere", api_key=key):
        pass
    assert key not in str(refused.value)


def test_a_virtual_clock_is_refused():
    with pytest.raises(SpecError, match="virtual"):
        HttpModel(Kernel(), "http://127.0.0.1:1/v1", "m")


EVENT = {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": None}]}
LAST = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


@contextmanager
def server(*answers: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A real server whose n-th answer is answers[n], the last for all others; and the bodies it was sent."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            answers[min(len(bodies), len(answers)) - 1](self)

        def log_message(self, *args: object) -> None:
            """Nothing is logged."""

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/v1", bodies
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def turned_away(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


def events(*told: Any, raw: bytes = b"") -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        for event in told:
            handler.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        handler.wfile.write(raw)

    return answer


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status: int):
    busy = turned_away(status, Retry_After="0")
    with server(busy, busy, events(EVENT, LAST)) as (url, bodies), connected(url) as (kernel, model):
        [reply] = ask(kernel, model, asked("?"))
    assert reply.text == "hello"
    assert len(bodies) == 3
    assert bodies[0] == bodies[2]


def test_a_server_that_stays_busy_is_given_up():
    for status, error in [(429, BusyError), (503, NotReadyError)]:
        busy = turned_away(status, Retry_After="0")
        with server(busy) as (url, bodies), connected(url, retries=2) as (kernel, model):
            with pytest.raises(error):
                ask(kernel, model, asked("?"))
            assert len(bodies) == 3


def test_how_long_is_waited_is_the_servers_choice_or_grows():
    rng = np.random.default_rng(0)
    assert wait_s({"retry-after": "7"}, 0, rng) == 7.0
    assert wait_s({"retry-after": "1.5"}, 3, rng) == 1.5
    assert wait_s({"retry-after": "9999"}, 0, rng) == 60.0
    dates = {"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}
    assert wait_s(dates, 0, rng) == 10.0
    for tries, most in enumerate([0.5, 1.0, 2.0, 4.0, 8.0]):
        assert most / 2 <= wait_s({}, tries, rng) <= most
    assert wait_s({"retry-after": "soon"}, 30, rng) <= 60.0


def cut(handler: BaseHTTPRequestHandler) -> None:
    events(EVENT)(handler)
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (events(EVENT), "before the reply was complete; 5 characters had come"),
        (cut, "5 characters had come"),
        (events(EVENT, raw=b"data: {no json\n\n"), "no event of a chat"),
        (events([1, 2]), "no event of a chat"),
        (events(EVENT, {"error": {"message": "out of memory", "code": "x"}}), "out of memory"),
        (turned_away(500), "500"),
        (events(), "before the reply was complete; 0 characters"),
    ],
)
def test_a_reply_that_breaks_off_is_a_named_error(answer: Callable[[BaseHTTPRequestHandler], None], why: str):
    with (
        server(answer) as (url, _),
        connected(url) as (kernel, model),
        pytest.raises(RemoteError, match=why),
    ):
        ask(kernel, model, asked("?"))


def test_a_server_that_is_not_there_is_a_named_error():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with connected(url) as (kernel, model), pytest.raises(RemoteError, match="was lost"):
            ask(kernel, model, asked("?"))
    with connected("nonsense") as (kernel, model), pytest.raises(RemoteError):
        ask(kernel, model, asked("?"))


def test_a_cancelled_reply_ends_its_connection():
    gone = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        events(EVENT)(handler)
        handler.wfile.flush()
        handler.rfile.read(1)  # returns when the client has gone
        gone.set()

    with server(endless) as (url, _), connected(url) as (kernel, model):

        async def main() -> Reply:
            stream = model.stream(asked("?"))
            async for _ in stream:
                break
            return stream.cancel()

        assert kernel.run(main()).text == "hello"
        assert gone.wait(60)


def test_replies_under_way_fail_when_the_client_is_closed():
    goes_on = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        events(EVENT)(handler)
        goes_on.wait(60)

    with server(endless) as (url, _), connected(url) as (kernel, model):

        async def main() -> None:
            stream = model.stream(asked("?"))
            async for _ in stream:
                model.close()
            await stream.reply()

        with pytest.raises(RemoteError, match="lost"):
            kernel.run(main())
        goes_on.set()
        with pytest.raises(NotReadyError, match="closed"):
            ask(kernel, model, asked("?"))


def test_what_cannot_be_sent_fails_its_reply():
    with connected("http://127.0.0.1:9/v1") as (kernel, model):
        with pytest.raises(RemoteError, match="surrogates"):
            ask(kernel, model, asked("\ud800"))
        call = ToolCall("1", "weather", {"city": {1, 2}})
        with pytest.raises(TypeError, match="JSON"):
            ask(kernel, model, ChatRequest((Message("assistant", "", (call,)),)))


def test_what_is_sent_is_what_was_asked():
    with server(events(EVENT, LAST)) as (url, bodies), connected(url) as (kernel, model):
        ask(kernel, model, replace(REQUESTS[6], stop=("x",), prefix="It", tenant="somebody", max_tokens=9))
        ask(kernel, model, asked("?", priority=3))
    body, urgent = bodies
    assert urgent["priority"] == -3  # as vLLM has it: the lower, the sooner
    assert "priority" not in body
    assert body["messages"] == [
        {"role": "user", "content": "Oslo"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                }
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "It"},
    ]
    assert body["tools"] == [{"type": "function", "function": WEATHER}]
    assert (body["stop"], body["max_tokens"], body["stream"]) == (["x"], 9, True)
    assert body["user"] == "somebody"
    assert body["continue_final_message"]
    assert not body["add_generation_prompt"]
