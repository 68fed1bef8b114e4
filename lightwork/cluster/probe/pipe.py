"""Two processes and a pipe: latency of a message, bandwidth of a large one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from lightwork.cluster.probe.samples import Bench

ECHO = """
import os
def take(n):
    while n:
        got = len(os.read(0, min(n, 1 << 20)))
        if not got:
            os._exit(0)
        n -= got
while True:
    head = b""
    while len(head) < 8:
        more = os.read(0, 8 - len(head))
        if not more:
            os._exit(0)
        head += more
    take(int.from_bytes(head, "little"))
    os.write(1, b"k")
"""


@contextmanager
def benches(quick: bool) -> Iterator[list[Bench]]:
    """Messages to another Python process, each answered by one byte."""
    size = (2 << 20) if quick else (16 << 20)
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        ask = partial(_ask, child.stdin.fileno(), child.stdout.fileno())
        method = "pipe to a Python process, answered by one byte"
        yield [
            Bench(
                name="latency/pipe",
                method=f"{method}; half of it",
                fn=partial(ask, b""),
                amount=2,
                per_s=False,
            ),
            Bench(
                name="read/pipe/1",
                method=f"{size >> 20} MiB by {method}",
                fn=partial(ask, bytes(size)),
                amount=size,
            ),
        ]
        child.stdin.close()


def _ask(into: int, out: int, payload: bytes) -> None:
    os.write(into, len(payload).to_bytes(8, "little"))
    left = memoryview(payload)
    while left:
        left = left[os.write(into, left) :]
    os.read(out, 1)
