"""A conversation with a server over its OpenAI interface, streamed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from lightwork.agents.api_key import bearer
from lightwork.cli._gauges import per_s
from lightwork.cli._output import is_terminal, paint
from lightwork.cli._server import Server
from lightwork.errors import BusyError, LightworkError, MissingExtraError, UsageError
from lightwork.home import save
from lightwork.runtime.clock import WallClock

if TYPE_CHECKING:
    import httpx

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECT_S = 10.0


class Clock(Protocol):
    """Seconds since it was made."""

    def now(self) -> float: ...


@dataclass(slots=True)
class Stats:
    """What the answers so far took.

    ttft_s, decode_s: sums over answers, until the first piece came here, and from the first token to the
    last: as the server says, for pieces come in bunches; as they came here, if it does not.
    """

    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    drafted: int = 0
    accepted: int = 0

    def saw(self, first_s: float, last_s: float, timings: dict[str, Any]) -> None:
        """Count one answer's times, in seconds since it was asked for, and what the server says of them."""
        self.answers += 1
        self.ttft_s += first_s
        told_ms = timings.get("decode_ms")
        self.decode_s += last_s - first_s if told_ms is None else told_ms / 1e3

    def add(self, usage: dict[str, Any], timings: dict[str, Any]) -> None:
        """Count what the server says of one answer."""
        self.prompt_tokens += usage.get("prompt_tokens", 0)
        self.output_tokens += usage.get("completion_tokens", 0)
        self.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        self.drafted += timings.get("drafted", 0)
        self.accepted += timings.get("accepted", 0)

    def line(self) -> str:
        """One line: tokens, tokens/s, ttft, accepted drafts."""
        parts = [f"{self.output_tokens} tokens"]
        if self.decode_s > 0:
            parts.append(per_s(max(0, self.output_tokens - self.answers) / self.decode_s))
        if self.answers and self.ttft_s > 0:
            parts.append(f"ttft {self.ttft_s / self.answers * 1e3:.3g} ms")
        if self.cached_tokens:
            parts.append(f"{self.cached_tokens} of {self.prompt_tokens} prompt tokens cached")
        if self.drafted:
            parts.append(f"{self.accepted} of {self.drafted} drafts accepted")
        return "  ".join(parts)


@dataclass(slots=True)
class Chat:
    """The messages so far and the server that continues them. settings: sampling fields of each request."""

    server: Server
    system: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    total: Stats = field(default_factory=Stats)
    last: Stats = field(default_factory=Stats)
    clock: Callable[[], Clock] = WallClock

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages.clear()

    def ask(self, prompt: str) -> Generator[str, None, None]:
        """The answer in pieces. The exchange joins the conversation when the answer has ended."""
        asked = {"role": "user", "content": prompt}
        first = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {
            **self.settings,
            "model": self.model(),
            "messages": [*first, *self.messages, asked],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer, times_s = "", []
        timings: dict[str, Any] = {}
        clock = self.clock()
        self.last = Stats()
        for event in self._events(body):
            for choice in event.get("choices") or ():
                if piece := (choice.get("delta") or {}).get("content"):
                    answer += piece
                    times_s.append(clock.now())
                    yield piece
            if usage := event.get("usage"):
                timings = event.get("timings") or {}
                for stats in (self.last, self.total):
                    stats.add(usage, timings)
        for stats in (self.last, self.total) if times_s else ():
            stats.saw(times_s[0], times_s[-1], timings)
        self.messages += [asked, {"role": "assistant", "content": answer}]

    def pipe(self, prompt: str) -> None:
        """Answer one prompt: stdout gets only the answer, a terminal's stderr what it took."""
        if not prompt.strip():
            raise UsageError("stdin holds no prompt", expected="text", fix="echo 'a prompt' | lightwork chat")
        for piece in self.ask(prompt.rstrip("\n")):
            print(piece, end="", flush=True)
        print(flush=True)
        if is_terminal(sys.stderr):
            print(paint(self.last.line(), "2", sys.stderr), file=sys.stderr)

    def save(self, path: Path) -> None:
        """Write the conversation as JSON. Raises LightworkError if the file cannot be written."""
        record: dict[str, Any] = {
            "model": self.server.model,
            "use": self.server.use,
            "settings": self.settings,
        }
        record |= {"messages": self.messages, "stats": asdict(self.total)}
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        save(path, lambda part: part.write_text(text, encoding="utf-8"))

    def client(self) -> httpx.Client:
        """To the server. Raises MissingExtraError."""
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise MissingExtraError("httpx", "serve") from error
        near = urlsplit(self.server.url).hostname in LOOPBACK  # a proxy cannot reach this machine's loopback
        timeout = httpx.Timeout(CONNECT_S, read=None)
        key, url = bearer(self.server.api_key), self.server.url
        return httpx.Client(base_url=url, headers=key, timeout=timeout, trust_env=not near)

    def model(self) -> str:
        """What the server calls its model, the first of them."""
        with self.client() as client, _explained(self.server.url):
            reply = client.get("/v1/models")
            _check(reply.status_code, reply.text)
            return str(reply.json()["data"][0]["id"])

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with (
            self.client() as client,
            _explained(self.server.url),
            client.stream("POST", "/v1/chat/completions", json=body) as reply,
        ):
            if reply.status_code != 200:
                _check(reply.status_code, reply.read().decode(errors="replace"))
            for line in reply.iter_lines():
                data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    event = json.loads(data)
                    if "error" in event:
                        _check(500, data)
                    yield event
        raise LightworkError("the answer broke off", expected="[DONE]", fix="read the server's log")


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn a transport's errors into ours."""
    import httpx

    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise LightworkError(
            f"no server answers at {url}", expected="lightwork serve", fix="lightwork chat tiny:llama"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LightworkError(f"the connection to {url} broke: {error}", fix="ask again") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise LightworkError(
            f"{url} does not answer like an OpenAI server: {error}", expected="/v1/chat/completions"
        ) from error


def _check(status: int, text: str) -> None:
    """Raise the server's own error if there is one."""
    if status == 200:
        return
    try:
        error = json.loads(text)["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        message = text[:300]
    wrong = f"the server answers {status}: {message}"
    if status == 429:
        raise BusyError(wrong)
    if status in (401, 403):
        raise UsageError(wrong, expected="a key that it knows", fix="set OPENAI_API_KEY")
    raise (UsageError if 400 <= status < 500 else LightworkError)(wrong)
