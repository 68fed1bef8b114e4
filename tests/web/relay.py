"""A line to a server of this machine that can be cut, and counts what comes."""

from __future__ import annotations

import socket
from contextlib import suppress
from threading import Thread

from lightwork.serve.http.main import listen


class Relay:
    """A way to a server of this machine, which can be cut. num_bytes: that came from the server."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._listener = listen("127.0.0.1", 0)
        self._listener.listen()
        self._lines: list[socket.socket] = []
        self.whole = True
        self.num_bytes = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End what is open, and whatever is opened."""
        self.whole = False
        for line in self._lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.whole = True

    def close(self) -> None:
        self.cut()
        for line in self._lines:
            line.close()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                near, _ = self._listener.accept()
                if not self.whole:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._port))
                self._lines += [near, far]
                for source, target, counts in ((near, far, 0), (far, near, 1)):
                    Thread(target=self._pass_on, args=(source, target, counts), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counts: int) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.num_bytes += counts * len(data)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
