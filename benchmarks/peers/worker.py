"""The loop of one engine's process: JSON lines in, JSON lines out. Standard library only.

Run by every peer's own interpreter. Between commands the process waits in read(), so it takes no core from
the engine that is being timed. Whatever the engine prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

Tokens = list[int]


@dataclass(frozen=True)
class Options:
    """What every engine is told. weights: f32, bf16, 8bit, 4bit. seqs: requests that may run at once.

    kv_tokens: tokens that the cache must hold in all. use: lightwork's techniques. prefixes: keep what is
    known of prompts from request to request. guesses: who guesses tokens: lookup (in the text), draft (the
    model of this folder), or nobody. k: how many at a time.
    """

    model: str
    weights: str
    threads: int
    seqs: int
    kv_tokens: int
    max_len: int
    use: Sequence[str] = ()
    prefixes: bool = False
    guesses: str = ""
    draft: str = ""
    k: int = 0


class Engine(Protocol):
    """An engine with a model in it. One that takes guesses has `steps`, passes of the model so far."""

    versions: dict[str, str]

    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[Tokens]:
        """Greedy continuations of exactly these lengths, all requests given at once."""

    def offered(
        self, prompts: Sequence[Tokens], lengths: Sequence[int], at_s: Sequence[float]
    ) -> list[float]:
        """The same of requests that come at these times, ascending from 0: when each has ended. Only of
        engines with `Engine.staggers`."""


def run(load: Callable[[Options], Engine]) -> None:
    """Answer commands until stdin ends: load, generate, offer, quit."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine: Engine | None = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command["do"] == "quit":
                break
            if command["do"] == "load":
                engine, reply = _load(load, command)
            elif command["do"] == "offer":
                assert engine is not None
                reply = {"ended_s": engine.offered(command["prompts"], command["lengths"], command["at_s"])}
            else:
                assert engine is not None
                reply = _generate(engine, command["prompts"], command["lengths"])
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        out.write(json.dumps(reply) + "\n")
    out.flush()
    os._exit(0)  # some engines wait for threads at exit, or crash there


def _load(load: Callable[[Options], Engine], command: dict[str, Any]) -> tuple[Engine, dict[str, Any]]:
    begin = time.perf_counter()
    engine = load(Options(**{f.name: command[f.name] for f in fields(Options) if f.name in command}))
    return engine, {"seconds": time.perf_counter() - begin, "versions": engine.versions}


def _generate(engine: Engine, prompts: list[Tokens], lengths: list[int]) -> dict[str, Any]:
    begin, cpu = time.perf_counter(), _cpu_s()
    tokens = engine.generate(prompts, lengths)
    end, cpu_end = time.perf_counter(), _cpu_s()
    steps = getattr(engine, "steps", 0)
    return {"seconds": end - begin, "cpu_seconds": cpu_end - cpu, "tokens": tokens, "steps": steps}


def _cpu_s() -> float:
    """CPU time of this process, its threads included, and of children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
