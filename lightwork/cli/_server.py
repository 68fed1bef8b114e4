"""The server that a chat talks to: one that runs already, or a child process that ends with the chat."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections import deque
from collections.abc import Sequence
from subprocess import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired
from threading import Thread
from types import TracebackType

from lightwork.agents.api_key import api_key
from lightwork.cli._output import StatusLine
from lightwork.errors import LightworkError, UsageError

_ADDRESS = re.compile(r"https?://(?:\[[0-9a-fA-F:]+\]|[\w.-]+)(?::\d+)?")
STOP_S = 10.0
KEPT_LINES = 40


class Server:
    """Where requests go. url: scheme, host and port, known once the server is ready.

    Raises LightworkError with the child's last lines if it ends before it is ready.
    """

    def __init__(self, model: str, *, use: Sequence[str] = (), on: str = "cpu") -> None:
        self.model = model
        self.use = tuple(use)
        self.on = on
        self.url = ""
        self._child: Popen[str] | None = None
        if self.is_remote and self.use:
            raise UsageError(
                "--use cannot change a server that runs already",
                expected="a model, or a URL without --use",
                fix=f"lightwork serve MODEL --use {self.use[0]!r}",
            )

    @property
    def is_remote(self) -> bool:
        return self.model.startswith(("http://", "https://"))

    @property
    def api_key(self) -> str | None:
        """What a server that runs already is sent; a child of ours wants none."""
        return api_key() if self.is_remote else None

    def __enter__(self) -> Server:
        if self.is_remote:
            self.url = self.model.rstrip("/").removesuffix("/v1")
        else:
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def restart(self, use: Sequence[str]) -> None:
        """Start the child again with other techniques."""
        if self.is_remote:
            raise UsageError("this server was not started by the chat", fix="start it again with --use")
        self.stop()
        self.use = tuple(use)
        self._start()

    def stop(self) -> None:
        """End the child: politely, then with force."""
        child, self._child = self._child, None
        if child is None:
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            child.send_signal(number)
            with contextlib.suppress(TimeoutExpired):
                child.wait(STOP_S)
                break
        if child.stdout:
            child.stdout.close()

    def _start(self) -> None:
        asked = [sys.executable, "-m", "lightwork", "serve", self.model, "--port", "0", "--on", self.on]
        for technique in self.use:
            asked += ["--use", technique]
        # A session of its own: Ctrl-C at the prompt must stop an answer, not the server.
        child = Popen(asked, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True, start_new_session=True)
        self._child = child
        said: deque[str] = deque(maxlen=KEPT_LINES)
        assert child.stdout is not None
        with StatusLine() as status:
            status(f"starting {self.model}; the first start on a machine compiles, which takes a while")
            for line in child.stdout:
                said.append(line.rstrip())
                status(said[-1].strip())
                if found := _ADDRESS.search(line):
                    self.url = found.group()
                    Thread(target=_drain, args=(child,), daemon=True).start()
                    return
        code = child.wait()
        self.stop()
        raise LightworkError(
            f"the server of {self.model} ended with code {code}:\n    " + "\n    ".join(said),
            expected="an address",
            fix=f"lightwork serve {self.model}",
        )


def _drain(child: Popen[str]) -> None:
    """Keep reading what the server says, so that it never waits for a full pipe."""
    with contextlib.suppress(ValueError, OSError):
        for _ in child.stdout or ():
            pass
