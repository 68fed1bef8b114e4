"""The parts `graph` and `runs` of agents_peers.py: what a task of a graph costs, and a whole small run.

graph: nodes that do nothing, side by side and one after another; langgraph's graph is compiled once, ours is
built anew each time. runs: a model that answers at once calls four tools in one turn and answers in the next.
Each peer is a process that waits while another is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from _report import report

SHAPES = {"fanout 100": 20, "fanout 1000": 2, "chain 20": 50}
"""Runs of a peer that are measured at once; ten times as many of ours."""
RUNS, MORE = 20, 10


def graph(options: argparse.Namespace) -> None:
    for shape, runs in SHAPES.items():
        _compare("graph", shape, "langgraph", runs, options)


def runs(options: argparse.Namespace) -> None:
    for peer in ("openai-agents", "pydantic-ai"):
        _compare("runs", "2 turns, 4 calls", peer, RUNS, options)


def _compare(part: str, shape: str, peer: str, runs: int, options: argparse.Namespace) -> None:
    """Both in turn, each after a run that is not counted."""
    python = options.peers and options.peers / "agents" / "bin" / "python"
    if not python or not python.is_file():
        report(part, shape=shape, peer=peer, absent=True)
        return
    with _worker(Path(sys.executable), "lightwork") as ours, _worker(python, peer) as theirs:
        _us(ours, part, shape, runs), _us(theirs, part, shape, 1)
        taken = [
            (_us(ours, part, shape, MORE * runs), _us(theirs, part, shape, runs))
            for _ in range(options.pairs)
        ]
    ratios = sorted(their / our for our, their in taken)
    report(
        part,
        shape=shape,
        peer=peer,
        us=round(median(our for our, _ in taken), 2),
        peer_us=round(median(their for _, their in taken), 1),
        ratio=round(median(ratios), 1),
        ratio_min=round(ratios[0], 1),
        ratio_max=round(ratios[-1], 1),
        pairs=options.pairs,
    )


@contextmanager
def _worker(python: Path, peer: str) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("run_programs.py")
    quiet = {**os.environ, "LANGSMITH_TRACING": "false", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    if peer != "lightwork":
        quiet.pop("PYTHONPATH", None)
    command = [str(python), str(script), peer]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet
    ) as child:
        yield child
        assert child.stdin is not None
        child.stdin.close()


def _us(child: subprocess.Popen[str], part: str, shape: str, runs: int) -> float:
    """Raises RuntimeError if the process ended; what it said stands on stderr."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps({"part": part, "shape": shape, "runs": runs}) + "\n")
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"{child.args!r} ended with {child.wait()}")
    return float(json.loads(line)["us"])
