"""An asyncio loop on a thread beside the kernel's, for libraries that live in asyncio.

What comes of it goes back by `Kernel.post`, or through the futures of `start`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any


class AsyncioThread:
    """Runs from the start until `close`; daemonic, so a program that forgets it still ends."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def start(self, coro: Coroutine[Any, Any, Any]) -> Future[Any]:
        """From any thread. Cancelling the future cancels the coroutine."""
        return asyncio.run_coroutine_threadsafe(coro, self._loop)

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def close(self) -> None:
        """Cancel what runs, wait until it has ended, and end. May be called twice."""
        if self.closed:
            return
        self.start(_cancel_others()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
