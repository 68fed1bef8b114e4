"""A model behind any OpenAI-compatible URL, as programs talk to it.

    model = HttpModel(kernel, "http://127.0.0.1:8000/v1", "tiny:llama", api_key="...")

A thin client: httpx in an asyncio loop beside the kernel's thread, every reply streamed, each event posted to
the kernel. A server that is busy (429) or not ready (503) is asked again, after the time that it says or a
growing one. Settings of the environment, such as proxies, are not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future as Running
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np

from lightwork.agents.api_key import bearer
from lightwork.agents.asyncio_thread import AsyncioThread
from lightwork.agents.chat_model import ChatRequest, ChatStream, Reason, Reply, Usage
from lightwork.agents.replies import function_dicts, message_dict, next_id, read_call
from lightwork.decode.sampling import Pick
from lightwork.errors import (
    BusyError,
    CapacityError,
    LightworkError,
    MissingExtraError,
    NotReadyError,
    RemoteError,
    SpecError,
    UsageError,
)
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
"""Before a request is sent again, where the server does not say; doubled each time."""
CONNECT_S, SILENCE_S = 10.0, 600.0
"""Until a connection is there, and until the next byte of a reply."""
SHOWN = 500


class HttpModel:
    """url: up to /v1. model: as the server calls it. retries: of requests that were turned away.

    Log-probabilities need a server that tells token ids ("return_tokens_as_token_ids", as lightwork's and
    vLLM's do), a prefix one that continues a message ("continue_final_message", likewise). A priority is sent
    as "priority", which those servers serve by or refuse. Replies fail with RemoteError if the connection is
    lost, UsageError or CapacityError for requests that are refused, BusyError or NotReadyError when all tries
    were in vain. Close it when done. Raises UsageError for an api_key that no header can carry.
    """

    def __init__(
        self, kernel: Kernel, url: str, model: str, *, api_key: str | None = None, retries: int = 5
    ) -> None:
        try:
            import httpx
        except ModuleNotFoundError:
            raise MissingExtraError("httpx", "serve") from None
        if kernel.clock.virtual:
            raise SpecError(
                f"{url} answers in real time, and this kernel's clock is virtual",
                expected="Kernel(WallClock())",
                fix="a ProfileModel or a ReplayModel",
            )
        headers = bearer(api_key)
        self.name = model
        self._kernel, self._url, self._retries = kernel, f"{url.rstrip('/')}/chat/completions", retries
        self._loop = AsyncioThread(f"lightwork-http {model}")
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=1000, max_keepalive_connections=100),
            trust_env=False,
        )

    def stream(self, request: ChatRequest) -> ChatStream:
        stream, sent = ChatStream(self._kernel), _Sent()
        task = self._kernel.spawn(self._answer(request, stream, sent), name=f"a turn of {self.name}")

        def stop() -> None:
            sent.cancel()
            task.cancel()

        stream.stop = stop
        return stream

    def close(self) -> None:
        """Replies under way fail. May be called twice."""
        if not self._loop.closed:
            self._loop.start(self._client.aclose()).result()
            self._loop.close()

    async def _answer(self, request: ChatRequest, stream: ChatStream, sent: _Sent) -> None:
        try:
            if self._loop.closed:
                raise NotReadyError(f"the client of {self._url} was closed", expected="one that is open")
            body = request_body(request, self.name)
            for tries in range(self._retries + 1):
                turn = _Turn(request, stream, self._kernel.future("a server's reply"))
                sent.running = self._loop.start(self._exchange(body, turn))
                try:
                    refused: _Refused | None = await turn.ended
                finally:
                    sent.cancel()
                if refused is None:
                    stream.end(turn.reply())
                    return
                if refused.status not in (429, 503) or tries == self._retries:
                    raise refused.error()
                await self._kernel.sleep(wait_s(refused.headers, tries, self._kernel.rng(self.name)))
        except Exception as error:
            stream.fail(error)

    async def _exchange(self, body: Mapping[str, Any], turn: _Turn) -> None:
        """In the asyncio loop: one request, its events posted to the kernel as they come."""
        post = self._kernel.post
        try:
            async with self._client.stream("POST", self._url, json=body) as response:
                if response.status_code != 200:
                    content = await response.aread()
                    post(turn.end, _Refused(response.status_code, dict(response.headers), content))
                    return
                rest = b""
                async for new in response.aiter_bytes():
                    *lines, rest = (rest + new).split(b"\n")
                    post(turn.take, [line[5:].strip() for line in lines if line.startswith(b"data:")])
            post(turn.end, None)
        except BaseException as error:
            what = f"{type(error).__name__}: {error}".rstrip(": ")
            post(turn.fail, f"the connection to {self._url} was lost ({what})")
            if not isinstance(error, Exception):  # cancelled, or closed
                raise


class _Sent:
    """A request on its way in the asyncio loop."""

    running: Running[None] | None = None

    def cancel(self) -> None:
        if self.running is not None:
            self.running.cancel()


class _Turn:
    """One reply as its events come, on the kernel's thread. ended: None, or how it was refused."""

    def __init__(self, request: ChatRequest, stream: ChatStream, ended: Future) -> None:
        self.ended = ended
        self._request, self._stream = request, stream
        self._text: list[str] = []
        self._calls: dict[int, list[str]] = {}
        self._reason = ""
        self._usage = Usage()
        self._picks: list[Pick] = []

    def take(self, events: Sequence[bytes]) -> None:
        """Events that came together. One that cannot be read fails the reply."""
        for data in events:
            if data != b"[DONE]" and not self.ended.done:
                self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            event = json.loads(data)
            if event.get("error"):
                self.ended.fail(_told_error(500, event))
                return
            if event.get("usage"):
                self._usage = _usage(event["usage"])
            for choice in event.get("choices") or ():
                self._take_choice(choice)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            told = data[:SHOWN].decode(errors="replace")
            self.fail(f"the server sent what is no event of a chat ({type(error).__name__}): {told}")

    def end(self, refused: _Refused | None) -> None:
        if self.ended.done:
            return
        if refused is None and not self._reason:
            self.fail("the server ended the connection before the reply was complete")
        else:
            self.ended.set(refused)

    def fail(self, why: str) -> None:
        if not self.ended.done:
            come = sum(map(len, self._text))
            self.ended.fail(RemoteError(f"{why}; {come} characters had come", expected="a server that stays"))

    def reply(self) -> Reply:
        calls = tuple(
            read_call(next_id(self._request, i), name, arguments)
            for i, (name, arguments) in enumerate(self._calls[key] for key in sorted(self._calls))
        )
        reason: Reason = "tool_calls" if calls else "stop"
        if self._reason == "length":
            reason = "length"
        return Reply("".join(self._text), calls, reason, self._usage, tuple(self._picks))

    def _take_choice(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta") or {}
        if delta.get("content"):
            self._text.append(delta["content"])
            self._stream.push(delta["content"])
        for new in delta.get("tool_calls") or ():
            call = self._calls.setdefault(new.get("index", 0), ["", ""])
            function = new.get("function") or {}
            call[0] += function.get("name") or ""
            call[1] += function.get("arguments") or ""
        told = choice.get("logprobs")
        if told and self._request.logprobs:
            self._picks += [_pick(entry) for entry in told.get("content") or ()]
        self._reason = choice.get("finish_reason") or self._reason


class _Refused:
    """An answer that is no reply."""

    def __init__(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.status, self.headers, self._content = status, headers, content

    def error(self) -> LightworkError:
        try:
            body = json.loads(self._content)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            body = {"error": {"message": self._content[:SHOWN].decode(errors="replace")}}
        return _told_error(self.status, body)


def request_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """A request as OpenAI's API takes it, to be streamed."""
    messages = [_said(message_dict(message)) for message in request.messages]
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tenant:
        body["user"] = request.tenant
    if request.priority:
        body["priority"] = -request.priority  # in a body the lower is the sooner
    if request.stop:
        body["stop"] = [*request.stop]
    if request.tools:
        body["tools"] = function_dicts(request)
    if request.logprobs:
        body |= {"logprobs": True, "top_logprobs": request.logprobs, "return_tokens_as_token_ids": True}
    if request.prefix:
        messages.append({"role": "assistant", "content": request.prefix})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def _said(message: dict[str, Any]) -> dict[str, Any]:
    """With arguments as text, which is how the API has them."""
    for call in message.get("tool_calls", ()):
        function = call["function"]
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return message


def wait_s(headers: Mapping[str, str], tries: int, rng: np.random.Generator) -> float:
    """Seconds before a request is sent again that was turned away so many times before: as the server says,
    or growing ones, by chance between half and the whole so that callers do not come back together.
    """
    told = headers.get("retry-after", "").strip()
    if told.replace(".", "", 1).isdecimal():
        return min(float(told), LONGEST_WAIT_S)
    try:
        seconds = (parsedate_to_datetime(told) - parsedate_to_datetime(headers["date"])).total_seconds()
        return min(max(0.0, seconds), LONGEST_WAIT_S)
    except (ValueError, TypeError, KeyError):
        return float(min(FIRST_WAIT_S * 2**tries, LONGEST_WAIT_S) * rng.uniform(0.5, 1.0))


def _told_error(status: int, body: Mapping[str, Any]) -> LightworkError:
    """A server's error as the one that an engine here would raise."""
    error = body.get("error")
    told = error if isinstance(error, dict) else {"message": str(error or body)[:SHOWN]}
    wrong, code = f"the server says: {told.get('message') or status}", told.get("code")
    if status == 429:
        return BusyError(wrong, fix="send it again later")
    if status == 503 or code == "NotReadyError":
        return NotReadyError(wrong, fix="send it again later")
    if code in ("CapacityError", "context_length_exceeded"):
        return CapacityError(wrong)
    if 400 <= status < 500:
        fix = "another api_key" if status in (401, 403) else ""
        return UsageError(wrong, expected=f"a request that it takes (HTTP {status})", fix=fix)
    return RemoteError(wrong, expected="a reply")


def _usage(told: Mapping[str, Any]) -> Usage:
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(told.get("prompt_tokens", 0), told.get("completion_tokens", 0), cached)


def _pick(entry: Mapping[str, Any]) -> Pick:
    top = tuple((_token_id(one["token"]), one["logprob"]) for one in entry["top_logprobs"])
    return Pick(_token_id(entry["token"]), entry["logprob"], top)


def _token_id(text: str) -> int:
    name, _, number = text.partition(":")
    if name != "token_id":
        raise ValueError("no token id")
    return int(number)
