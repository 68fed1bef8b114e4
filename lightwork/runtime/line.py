"""A pipe between the kernels of two processes: messages become calls on the other's thread, and nobody waits.

Both ends read and write on threads of their own, so a link that is slow holds up what it carries and nothing
else; how long a message takes says nothing about who sent it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from threading import Thread
from typing import Any

from lightwork.runtime.kernel import Kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How slow a pipe is made, for experiments: a message arrives delay_s later than it would, and so many
    bytes pass in a second."""

    delay_s: float = 0.0
    bytes_per_s: float = inf


class Line:
    """One end. take(message): called on the kernel's thread. ended(): when the other end is gone, on another
    thread."""

    def __init__(
        self,
        kernel: Kernel,
        pipe: Connection,
        take: Callable[[Any], object],
        ended: Callable[[], object],
        link: Link,
    ) -> None:
        self._kernel = kernel
        self._pipe = pipe
        self._take = take
        self._ended = ended
        self._link = link
        self._free_s = 0.0
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._writing = Thread(target=self._write, name="lightwork-write", daemon=True)
        for thread in (self._writing, Thread(target=self._read, name="lightwork-read", daemon=True)):
            thread.start()

    def send(self, message: Any) -> None:
        """On the kernel's thread. What cannot be sent is lost: `ended` is called, too."""
        data = ForkingPickler.dumps(message)
        if self._link == Link():
            self._outbox.put(data)
            return
        now_s = self._kernel.now()
        self._free_s = max(now_s, self._free_s) + len(data) / self._link.bytes_per_s
        self._kernel.at(self._free_s + self._link.delay_s, self._outbox.put, data)

    def finish(self) -> None:
        """Return when what was to be sent has been, or cannot be."""
        self._outbox.put(None)
        self._writing.join()

    def close(self) -> None:
        """From any thread. What has not been sent is not."""
        hang_up(self._pipe)

    def _read(self) -> None:
        try:
            while True:
                self._kernel.post(self._take, self._pipe.recv())
        except (EOFError, OSError):
            pass
        finally:
            self._outbox.put(None)
            self._ended()

    def _write(self) -> None:
        with suppress(OSError):  # the reading thread tells
            while (data := self._outbox.get()) is not None:
                self._pipe.send_bytes(data)


def hang_up(pipe: Connection) -> None:
    """Whoever reads at either end finds its end; closing alone would wake nobody here."""
    with suppress(OSError), socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
