"""`chat` and `serve` on a real terminal: a pseudo-terminal that is looked at as a person would."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("prompt_toolkit")
pytestmark = pytest.mark.multiproc

CONTROL = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][AB0]|\x1b[=>]")
PATIENCE_S = 120.0


class Screen:
    """What a process writes to its terminal, and what is typed there."""

    def __init__(self, process: subprocess.Popen[bytes], side: int) -> None:
        self.process = process
        self.side = side
        self.raw = b""

    def text(self) -> str:
        return CONTROL.sub(b"", self.raw).decode(errors="replace")

    def wait_for(self, words: str) -> str:
        """Read on until the words were written."""
        while words not in self.text():
            ready, _, _ = select.select([self.side], [], [], PATIENCE_S)
            assert ready, f"{words!r} did not come:\n{self.text()}"
            try:
                got = os.read(self.side, 1 << 16)
            except OSError:  # the other side is closed
                got = b""
            assert got, f"it ended before {words!r}:\n{self.text()}"
            self.raw += got
            if b"\x1b[6n" in got:  # it asks where the cursor is
                os.write(self.side, b"\x1b[1;1R")
        return self.text()

    def type(self, keys: str) -> None:
        os.write(self.side, keys.encode())


@contextmanager
def terminal(*arguments: str) -> Iterator[Screen]:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lightwork", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Screen(process, ours)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)
        os.close(ours)


def test_a_chat_on_a_terminal() -> None:
    """Streams, says what an answer took, keeps a line with the server's state, and leaves cleanly."""
    with terminal("chat", "tiny:llama", "--use", "Ngram(k=4)", "--max-tokens", "24") as screen:
        screen.wait_for("/quit")
        screen.type("\x1b[200~hello\nthere\x1b[201~\r")
        said = screen.wait_for("ttft")
        assert "tokens/s" in said
        screen.wait_for("KV ")
        screen.type("/stats\r")
        screen.type("/nope\r")
        screen.wait_for("no command is called '/nope'")
        screen.type("/quit\r")
        assert screen.process.wait(PATIENCE_S) == 0


def test_serve_keeps_one_line_on_a_terminal() -> None:
    import httpx

    with terminal("serve", "tiny:llama", "--port", "0") as screen:
        said = screen.wait_for("curl http")
        found = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert found is not None
        body = {"model": "tiny:llama", "prompt": "hello", "max_tokens": 8, "ignore_eos": True}
        with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
            assert client.post(f"{found.group()}/v1/completions", json=body).status_code == 200
        screen.wait_for("running 0  waiting 0  0 tokens/s  KV")
        screen.process.send_signal(signal.SIGINT)
        assert screen.process.wait(PATIENCE_S) == 0
