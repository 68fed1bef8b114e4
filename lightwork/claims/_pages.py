"""Verbs that serve a page, in processes of their own, and who asks them by HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lightwork.errors import LightworkError
from lightwork.runtime.clock import WallClock

PATIENCE_S = 120.0


class Answer(NamedTuple):
    """seconds: from asking to the last byte."""

    told: Any
    num_bytes: int
    seconds: float


class Page:
    """A verb's page, and the process."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        self.address = address
        self._clock = WallClock()
        self._open = HTTPConnection(urlsplit(address).netloc, timeout=PATIENCE_S)

    def ask(self, path: str) -> Answer:
        """Raises LightworkError for another answer than 200."""
        began_s = self._clock.now()
        self._open.request("GET", path)
        reply = self._open.getresponse()
        body = reply.read()
        seconds = self._clock.now() - began_s
        if reply.status != 200:
            raise LightworkError(f"{path} answers {reply.status}: {body[:200]!r}")
        return Answer(json.loads(body), len(body), seconds)

    def read_feed(self, path: str) -> Thread:
        """As an open page does, until it ends."""

        def read() -> None:
            with closing(HTTPConnection(urlsplit(self.address).netloc, timeout=PATIENCE_S)) as feed:
                feed.request("GET", path)
                reply = feed.getresponse()
                while reply.readline():
                    pass

        thread = Thread(target=read, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        self._open.close()

    def peak_bytes(self) -> int:
        """The most memory that its process ever held; 0 where the system does not tell."""
        file = Path(f"/proc/{self.process.pid}/status")
        found = re.search(r"VmHWM:\s+(\d+) kB", file.read_text()) if file.exists() else None
        return int(found[1]) << 10 if found else 0


@contextmanager
def paged(*words: str) -> Iterator[Page]:
    """Raises LightworkError if the verb ends before it has a page."""
    command = [sys.executable, "-m", "lightwork", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"(http://127\.0\.0\.1:\d+)/ui", line):
                    break
            else:
                raise LightworkError(f"lightwork {' '.join(words)} failed: {said.strip()[-300:]}")
            with closing(Page(process, found[1])) as page:
                yield page
        finally:
            process.kill()
