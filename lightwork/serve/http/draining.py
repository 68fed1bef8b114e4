"""A server that ends as a load balancer's users expect: nobody who was accepted is cut off.

At the first SIGTERM or Ctrl-C it goes on listening: what was accepted is served to its end, whoever comes is
told to go elsewhere (503 with Retry-After, /health and /ready too). Then it stops. What is not done after a
time gets an error, and who does not even read that, an end. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from types import FrameType

import uvicorn

from lightwork.runtime.progress import say
from lightwork.serve.service import Service

DRAIN_S = 25.0
"""Kubernetes kills 30 seconds after it has asked; what is not done by then should still hear so."""
LAST_S = 3.0
"""So long clients may take to read that there is no more."""


class DrainingServer(uvicorn.Server):
    """drain_s: how long accepted requests may go on. up: set when it listens."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_s: float = DRAIN_S) -> None:
        super().__init__(config)
        self.up = threading.Event()
        self._service = service
        self._drain_s = drain_s
        self._asked = False
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._asked:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
            return
        self._asked = True
        left = self._service.num_unfinished
        say(f"draining {left} requests for at most {self._drain_s:g} s; Ctrl-C again stops them")
        if self._service.end_training():
            say("training ends here; what was trained so far is kept")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second, until it returns True: when everything is computed, and sent."""
        if self._asked and self._draining is None:
            asyncio.get_running_loop().call_later(self._drain_s, self._give_up)
            self._draining = asyncio.ensure_future(self._service.drain())
        if self._draining is not None and self._draining.done() and not self.server_state.tasks:
            self.should_exit = True
        return await super().on_tick(counter)

    def _give_up(self) -> None:
        """What has not been answered is, with an error; what has been, may still be on its way."""
        left = len(self.server_state.tasks)
        say(f"{left} requests were not done in {self._drain_s:g} s and end here")
        self._service.cancel()
        self.should_exit = True
        asyncio.get_running_loop().call_later(LAST_S, self._cut)

    def _cut(self) -> None:
        for task in self.server_state.tasks:
            task.cancel()
        for connection in [*self.server_state.connections]:
            connection.transport.abort()
