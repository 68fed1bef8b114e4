"""The parent's side of an engine: start it, ask it, measure its memory, end it whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.engines import Engine

LONGEST_S = 1800.0


class PeerError(Exception):
    """An engine that could not do what it was asked."""


class Process:
    """A child in a session of its own, with all its descendants."""

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], log: Path, *, piped: bool
    ) -> None:
        self._log = log.open("w", encoding="utf-8")
        self._path = log
        pipe = subprocess.PIPE if piped else subprocess.DEVNULL
        self.child = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe if piped else self._log,
            stderr=self._log,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    def pss_bytes(self) -> int:
        """Memory of the process and its descendants; pages shared with others count in part."""
        return sum(_pss_bytes(pid) for pid in _descendants(self.child.pid))

    def last_words(self) -> str:
        self._log.flush()
        lines = self._path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    def end(self) -> None:
        """Kill the whole session and wait for it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        for stream in (self.child.stdin, self.child.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class Worker:
    """An engine with a model loaded, that generates when asked and waits in read() otherwise.

    steps: passes of its model so far, 0 where they are not counted.
    """

    def __init__(
        self, engine: Engine, python: Path, log: Path, environment: dict[str, str], load: dict[str, Any]
    ) -> None:
        self.name = engine.name
        self._process = Process([str(python), str(engine.script)], environment, log, piped=True)
        self.steps = 0
        try:
            self.versions: dict[str, str] = self._ask(do="load", **load)["versions"]
        except BaseException:
            self._process.end()
            raise

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> tuple[float, list[list[int]]]:
        """Seconds, and the tokens. Raises PeerError if they have not the lengths asked for."""
        reply = self._ask(do="generate", prompts=prompts, lengths=lengths)
        tokens: list[list[int]] = reply["tokens"]
        if [len(t) for t in tokens] != lengths:
            raise PeerError(f"{self.name} gave {[len(t) for t in tokens]} tokens, not {lengths}")
        self.steps = int(reply["steps"])
        return float(reply["seconds"]), tokens

    def offer(self, prompts: list[list[int]], lengths: list[int], at_s: list[float]) -> list[float]:
        """Requests that come at these times; when each has ended, in seconds on the same clock."""
        ended_s: list[float] = self._ask(do="offer", prompts=prompts, lengths=lengths, at_s=at_s)["ended_s"]
        return ended_s

    def pss_bytes(self) -> int:
        return self._process.pss_bytes()

    def end(self) -> None:
        self._process.end()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _ask(self, **command: Any) -> dict[str, Any]:
        child = self._process.child
        assert child.stdin is not None
        assert child.stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(command).encode() + b"\n")
            child.stdin.flush()
            if not select.select([child.stdout], [], [], LONGEST_S)[0]:
                raise PeerError(f"{self.name} did not {command['do']} within {LONGEST_S:.0f} s")
            line = child.stdout.readline()
        if not line:
            raise PeerError(f"{self.name} ended during {command['do']}: {self._process.last_words()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(f"{self.name}: {reply['error']}")
        return reply


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += _descendants(int(child))
    return found


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
