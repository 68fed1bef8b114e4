"""What does a model behind a URL cost its caller? Replies streamed in 20 pieces, the client's CPU time.

HttpModel and the openai package ask the same canned server, which is a process of its own, in turns; their
texts are compared. CPU seconds are those of this process, all threads. The bar: no more than openai takes.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median

import openai
from _report import report

from lightwork.agents.chat_model import ChatRequest, Message
from lightwork.agents.http_model import HttpModel
from lightwork.runtime.clock import WallClock, cpu_s
from lightwork.runtime.kernel import Kernel

PIECES, REQUESTS, ROUNDS = 20, 100, 7
QUESTION = "What is the answer?"


class Canned(BaseHTTPRequestHandler):
    """Says the same to everybody, piece by piece."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for i in range(PIECES):
            self._send({"delta": {"content": f"word{i} "}, "finish_reason": None})
        self._send({"delta": {}, "finish_reason": "stop"})
        self._write(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, choice: dict[str, object]) -> None:
        event = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        event["choices"] = [{"index": 0, **choice}]  # type: ignore[assignment]
        self._write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def log_message(self, *args: object) -> None:
        """Nothing is logged."""


def serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Canned)
    print(server.server_port, flush=True)
    server.serve_forever()


def ours(url: str) -> tuple[Callable[[], list[str]], Callable[[], None]]:
    """Ask REQUESTS times, and what to do at the end."""
    kernel = Kernel(WallClock())
    model = HttpModel(kernel, url, "m")
    request = ChatRequest((Message("user", QUESTION),))

    async def main() -> list[str]:
        texts = []
        for _ in range(REQUESTS):
            stream = model.stream(request)
            texts.append("".join([piece async for piece in stream]))
        return texts

    return lambda: kernel.run(main()), model.close


def theirs(url: str) -> tuple[Callable[[], list[str]], Callable[[], None]]:
    """The same with openai's client."""
    runner = asyncio.Runner()
    client = openai.AsyncOpenAI(base_url=url, api_key="none")

    async def main() -> list[str]:
        texts = []
        for _ in range(REQUESTS):
            events = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": QUESTION}], stream=True, max_tokens=512
            )
            texts.append("".join([event.choices[0].delta.content or "" async for event in events]))
        return texts

    def close() -> None:
        runner.run(client.close())
        runner.close()

    return lambda: runner.run(main()), close


def main() -> None:
    child = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        url = f"http://127.0.0.1:{child.stdout.readline().strip()}/v1"
        clients = {"lightwork": ours(url), "openai": theirs(url)}
        texts = {name: ask() for name, (ask, _) in clients.items()}
        assert texts["lightwork"] == texts["openai"]
        took_us: dict[str, list[float]] = {name: [] for name in clients}
        for _ in range(ROUNDS):
            for name, (ask, _) in clients.items():
                before_s = cpu_s()
                ask()
                took_us[name].append(1e6 * (cpu_s() - before_s) / REQUESTS)
        for _, close in clients.values():
            close()
    finally:
        child.terminate()
        child.wait()
    ratios = sorted(o / t for o, t in zip(took_us["lightwork"], took_us["openai"], strict=True))
    report(
        "agent_models",
        us_per_reply={name: round(median(values)) for name, values in took_us.items()},
        ratio=[round(ratios[0], 3), round(median(ratios), 3), round(ratios[-1], 3)],
        pieces=PIECES,
        openai=openai.__version__,
    )


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
