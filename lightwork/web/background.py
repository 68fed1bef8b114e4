"""A page's server on a thread of a process that does something else: on this machine alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import uvicorn
from fastapi import FastAPI

from lightwork.serve.http.main import listen

GRACE_S = 3
"""So long an open page may take to read what is left of its feed."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, beat: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self.up = Event()
        self._beat = beat

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        self.up.set()
        await self._beat()
        return await super().on_tick(counter)


@contextmanager
def served(app: FastAPI, port: int, beat: Callable[[], Awaitable[None]]) -> Iterator[str]:
    """Its address, for the length of a block. port: 0 is any free one. beat: called ten times a second.

    Raises UsageError if the port is taken.
    """
    listener = listen("127.0.0.1", port)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=GRACE_S
    )
    server = _Server(config, beat)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, name="lightwork-http", daemon=True)
    thread.start()
    server.up.wait()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
